"""The loader: batches, rows per host, start at any row, end of its threads, and errors."""

from collections.abc import Generator
from fractions import Fraction
import itertools
from pathlib import Path
import subprocess
import sys
import threading
from typing import Any

import jax
import numpy as np
import pytest

from llama_cpt.data.loader import batches, row_batch
from llama_cpt.data.mixture import Mixture, MixtureCorpus
from llama_cpt.data.rows import (
    DOCUMENT_START,
    TOKEN_BITS,
    Manifest,
    TokenRows,
    record_writer,
    write_manifest,
)
from llama_cpt.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
# A BOS that begins a document. The id itself does not mark a beginning.
MARKED = np.uint32(1) | DOCUMENT_START
LENGTH = 12


class ArrayRows:
    """Rows in memory with the interface ``RowSource``."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def read(self, indices):
        return self.rows[indices]


def random_rows(count, seed):
    """Return rows with many documents; some begin first, last or next to each other."""
    random = np.random.default_rng(seed)
    rows = random.integers(1, 1000, (count, LENGTH + 1)).astype(np.uint32)
    return np.where(random.random(rows.shape) < 0.2, MARKED, rows)


SIZES = 23, 31, 40
CORPORA = [ArrayRows(random_rows(size, seed)) for seed, size in enumerate(SIZES)]


def make_mixture(seed=0):
    weights = [((0, Fraction(i + 1)), (30, Fraction(2 * i))) for i in range(len(SIZES))]
    members = [
        MixtureCorpus(f"c{i}", size, stages)
        for i, (size, stages) in enumerate(zip(SIZES, weights, strict=True))
    ]
    stages = ((0, Fraction("0.335")), (40, Fraction("0.8")))
    return Mixture(stages, tuple(members[:2]), tuple(members[2:]), seed)


def loader(start_row=0, **changes) -> Generator[Any]:
    """Return batches of 16 rows of CORPORA; ``changes`` are options of ``batches``."""
    settings: dict[str, Any] = dict(
        global_batch_size=16,
        num_microbatches=2,
        start_row=start_row,
    )
    corpora = changes.pop("corpora", CORPORA)
    return batches(make_mixture(), corpora, **settings | changes)


def take(count, *arguments, **changes):
    return list(itertools.islice(loader(*arguments, **changes), count))


def assert_same(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def row_numbers(batch):
    return batch.row[..., 0].astype(np.int64) + (batch.row[..., 1].astype(np.int64) << 32)


def test_row_batch_equals_rows_cut_token_by_token():
    rows = random_rows(50, seed=9)
    rows[0, 0], rows[1, 0], rows[2, -1] = MARKED, 7, MARKED
    numbers = np.arange(50, dtype=np.int64) * 10**9
    corpus = np.arange(50, dtype=np.int32) % 3
    batch = row_batch(rows, corpus, numbers)
    for i, row in enumerate(rows.tolist()):
        segment, position = 0, 0
        for t, token in enumerate(row[:-1]):
            begins = t == 0 or token == MARKED
            segment, position = (segment + 1, 0) if begins else (segment, position + 1)
            target = row[t + 1]
            learned = float(target != MARKED)
            expected = *(x & 0x7FFFFFFF for x in (token, target)), learned, segment, position, i % 3
            fields = "tokens", "targets", "loss_mask", "segment_ids", "positions", "corpus"
            assert tuple(getattr(batch, field)[i, t] for field in fields) == expected
    np.testing.assert_array_equal(row_numbers(batch), numbers)
    assert batch.row.shape == (50, 2) and batch.row.dtype == np.uint32
    assert batch.loss_mask.dtype == np.float32
    for field in ("tokens", "targets", "segment_ids", "positions", "corpus"):
        assert getattr(batch, field).dtype == np.int32
        assert getattr(batch, field).shape == (50, LENGTH)


def test_row_of_one_document_and_row_of_bos_only():
    rows = np.array([[5, 6, 7, 8], [MARKED] * 4], np.uint32)
    batch = row_batch(rows, np.zeros(2, np.int32), np.arange(2))
    assert batch.segment_ids.tolist() == [[1, 1, 1], [1, 2, 3]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.loss_mask.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_batches_hold_the_rows_of_the_mixture_in_order():
    got = take(7, start_row=5)
    numbers = np.concatenate([row_numbers(batch).reshape(-1) for batch in got])
    np.testing.assert_array_equal(numbers, np.arange(5, 5 + 7 * 16))
    corpus, index = make_mixture().locate(numbers)
    rows = np.stack([CORPORA[c].rows[i] for c, i in zip(corpus, index, strict=True)]) & TOKEN_BITS
    tokens = np.concatenate([batch.tokens.reshape(-1, LENGTH) for batch in got])
    targets = np.concatenate([batch.targets.reshape(-1, LENGTH) for batch in got])
    np.testing.assert_array_equal(tokens, rows[:, :-1])
    np.testing.assert_array_equal(targets, rows[:, 1:])
    assert got[0].tokens.shape == (2, 8, LENGTH) and got[0].row.shape == (2, 8, 2)


@pytest.mark.parametrize("num_microbatches", [1, 2, 4])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_batches_of_hosts_join_to_the_batch_of_one_host(hosts, num_microbatches):
    alone = take(4, num_microbatches=num_microbatches)
    parts = [
        take(4, num_microbatches=num_microbatches, rows_here=rows)
        for rows in np.split(np.arange(16 // num_microbatches), hosts)
    ]
    for step in range(4):
        seen = np.concatenate([row_numbers(part[step]).reshape(-1) for part in parts])
        np.testing.assert_array_equal(np.sort(seen), np.arange(16 * step, 16 * (step + 1)))
        joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *[p[step] for p in parts])
        assert_same(joined, alone[step])


def test_resume_at_any_step_gives_the_same_next_batch():
    whole = take(12)
    for step in range(12):
        assert_same(take(1, start_row=16 * step)[0], whole[step])


def test_far_start_reads_only_its_own_rows(others):
    """Starting at step 100,000 reads as many rows as starting at step 0."""
    reads = []

    class Counting(ArrayRows):
        def read(self, indices):
            reads.append(len(indices))
            return super().read(indices)

    counting = [Counting(rows.rows) for rows in CORPORA]
    for start in (0, 16 * 100_000):
        reads.clear()
        source = loader(start, corpora=counting)
        batch = next(source)
        source.close()
        assert_no_reader_left(others)
        assert row_numbers(batch)[0, 0] == start
        assert sum(reads) <= 16 * 6


def test_indivisible_batch_is_an_error():
    with pytest.raises(
        UserError, match=r"global_batch_size=16 must be a multiple of 3, .* nearest"
    ):
        loader(num_microbatches=3)


def test_errors_of_read_propagate(others):
    class Broken(ArrayRows):
        def read(self, indices):
            raise UserError("rows-00000-of-00001.array_record is damaged: run prepare again.")

    source = loader(corpora=[Broken(rows.rows) for rows in CORPORA])
    with pytest.raises(UserError, match="is damaged: run prepare again"):
        next(source)
    assert_no_reader_left(others)


def readers():
    return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}


@pytest.fixture
def others():
    """Threads of earlier loaders that are not garbage-collected yet."""
    return readers()


def assert_no_reader_left(others):
    for thread in readers() - others:
        thread.join(timeout=60)
    assert not readers() - others


def test_loader_reads_ahead_and_close_ends_its_threads(others):
    source = loader()
    next(source)
    assert readers() - others
    source.close()
    assert_no_reader_left(others)
    with pytest.raises(StopIteration):
        next(source)


def test_program_can_exit_during_iteration():
    program = (
        "from tests.data import test_loader\n"
        "source = test_loader.loader()\n"
        "next(source)\n"
        "print('read', flush=True)\n"
        "raise SystemExit(75)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (75, "read\n"), done.stderr


def write_corpus(folder, rows):
    """Write ``rows`` to ``folder`` as a prepared corpus with shards of different lengths."""
    folder.mkdir()
    parts = {"rows-00000-of-00002.array_record": rows[:9]}
    parts["rows-00001-of-00002.array_record"] = rows[9:]
    for name, part in parts.items():
        with record_writer(str(folder / name)) as writer:
            for row in part:
                writer.write(row.astype("<u4").tobytes())
    manifest = Manifest(
        corpus=folder.name,
        tokenizer="",
        sequence_length=LENGTH,
        text_field="text",
        bad_documents="error",
        sources=[],
        shards=[(name, len(part)) for name, part in parts.items()],
        documents=0,
        tokens=rows.size,
        dropped_tokens=0,
        source_bytes=0,
        characters=0,
        skipped={},
        checked_documents=0,
        lossy_documents=0,
    )
    write_manifest(str(folder), manifest)


def test_rows_on_disk_and_in_memory_give_equal_batches(tmp_path):
    """Several threads read from the same reader in random order over several epochs."""
    on_disk = []
    for number, rows in enumerate(CORPORA):
        write_corpus(tmp_path / str(number), rows.rows)
        on_disk.append(TokenRows(str(tmp_path / str(number))))
    for ours, theirs in zip(take(30, corpora=on_disk), take(30), strict=True):
        assert_same(ours, theirs)
