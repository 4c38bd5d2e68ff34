"""Rows on disk: division of documents into rows, reads by index, errors for damaged files."""

import errno
import os
from pathlib import Path
import threading
from unittest.mock import Mock

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from llama_cpt.data.rows import (
    READS_AT_A_TIME,
    HeldoutDocuments,
    Manifest,
    Records,
    TokenRows,
    cut_rows,
    heldout_record,
    read_manifest,
    record_writer,
    write_manifest,
)
from llama_cpt.runtime import storage as runtime_storage
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import UnreachableError
from tests.storage_server import storage

LENGTH = 7


def write(folder, shards, *, length=LENGTH):
    """Write a prepared corpus to ``folder``; ``shards`` contains the records of each shard."""
    folder.mkdir(exist_ok=True)
    names = [f"rows-{i:05}-of-{len(shards):05}.array_record" for i in range(len(shards))]
    for name, records in zip(names, shards, strict=True):
        with record_writer(str(folder / name)) as writer:
            for record in records:
                writer.write(record)
    counts = dict.fromkeys(("documents", "tokens", "dropped_tokens", "source_bytes"), 0)
    manifest = Manifest(
        corpus="zh",
        tokenizer="f",
        sequence_length=length,
        text_field="text",
        bad_documents="error",
        sources=[],
        shards=[(name, len(records)) for name, records in zip(names, shards, strict=True)],
        characters=0,
        skipped={},
        checked_documents=0,
        lossy_documents=0,
        **counts,
    )
    write_manifest(str(folder), manifest)
    return manifest


@settings(deadline=None)
@given(st.lists(st.integers(0, 40)), st.integers(1, 20))
def test_rows_and_tail_are_the_documents_in_order(lengths, row_tokens):
    tokens = np.arange(sum(lengths), dtype=np.uint32)
    documents = np.split(tokens, np.cumsum(lengths))
    rows = list(cut_rows(iter(documents), row_tokens))
    assert all(len(row) == row_tokens for row in rows[:-1])
    assert np.array_equal(np.concatenate([*rows, tokens[:0]]), tokens)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.data())
def test_rows_by_index_across_shards(tmp_path_factory, sizes, data):
    rows = np.arange(sum(sizes) * (LENGTH + 1), dtype=np.uint32).reshape(-1, LENGTH + 1)
    shards = np.split(rows, np.cumsum(sizes)[:-1])
    folder = tmp_path_factory.mktemp("rows")
    manifest = write(folder, [[row.astype("<u4").tobytes() for row in part] for part in shards])
    assert read_manifest(str(folder)) == manifest
    read = TokenRows(str(folder))
    assert len(read) == len(rows)
    last = max(len(rows) - 1, 0)
    drawn = data.draw(st.lists(st.integers(0, last), max_size=20)) if len(rows) else []
    indices = np.array(drawn, np.int64)
    assert np.array_equal(read.read(indices), rows[indices])


def test_heldout_documents(tmp_path):
    documents = [(np.arange(n, dtype=np.uint32), n * 5_000_000_000) for n in (2, 1000, 3)]
    write(tmp_path, [[heldout_record(*d) for d in documents]], length=0)
    read = HeldoutDocuments(str(tmp_path))
    assert len(read) == 3
    order = [2, 0, 1]
    for index, (tokens, source_bytes) in zip(order, read.read(np.array(order)), strict=True):
        assert np.array_equal(tokens, documents[index][0])
        assert source_bytes == documents[index][1]


def test_documents_are_read_concurrently(tmp_path):
    """READS_AT_A_TIME documents are read at the same time."""
    write(tmp_path, [[heldout_record(np.arange(3, dtype=np.uint32), 3)] * 64], length=0)
    read = HeldoutDocuments(str(tmp_path))
    all_at_once = threading.Barrier(READS_AT_A_TIME)
    (reader,) = read._records._open()

    class Slow:
        def read(self, indices):
            all_at_once.wait(timeout=30)
            return reader.read(indices)

    read._records._readers = [Slow()]
    assert len(read.read(np.arange(64))) == 64


def test_missing_and_invalid_manifests_are_errors(tmp_path):
    assert read_manifest(str(tmp_path)) is None
    with pytest.raises(UserError, match="is not prepared; run `.* -m llama_cpt.prepare CONF"):
        TokenRows(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"rows": 3}')
    with pytest.raises(UserError, match=f"not a manifest .* delete {tmp_path}"):
        TokenRows(str(tmp_path))


def test_errors_name_broken_shards(tmp_path):
    rng = np.random.default_rng(0)
    records = [rng.bytes(4 * (LENGTH + 1)) for _ in range(20_000)]
    write(tmp_path, [records])
    (shard,) = tmp_path.glob("*.array_record")
    content = shard.read_bytes()
    read = TokenRows(str(tmp_path))

    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{shard.name}: .*delete its folder"):
        read.read(np.array([0]))
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(UserError, match=f"{shard.name}: Corrupted.*delete its folder"):
        read.read(np.arange(len(records)))
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: .*No such file"):
        TokenRows(str(tmp_path)).read(np.array([0]))


def test_transient_read_error_is_unreachable(tmp_path):
    """A mounted bucket that does not answer gives EIO, as does /proc/self/mem at address 0."""
    write(tmp_path, [[bytes(4 * (LENGTH + 1))]])
    (shard,) = tmp_path.glob("*.array_record")
    read = TokenRows(str(tmp_path))
    read.read(np.array([0]))
    (opened,) = (fd for fd in Path("/proc/self/fd").iterdir() if fd.resolve() == shard)
    with open("/proc/self/mem", "rb") as failing:
        os.dup2(failing.fileno(), int(opened.name))
    with pytest.raises(UnreachableError, match=f"{shard.name}: cannot be read now .*Input/output"):
        read.read(np.array([0]))


def test_full_disk_leaves_no_file(tmp_path):
    (tmp_path / "rows.draft").symlink_to("/dev/full")
    with pytest.raises(UserError, match="rows: cannot be written .*No space left on device"):
        with record_writer(str(tmp_path / "rows")) as writer:
            for _ in range(100_000):
                writer.write(bytes(1000))
    assert not list(tmp_path.iterdir())


def test_transient_write_error_is_unreachable(tmp_path, monkeypatch):
    broken = Mock(side_effect=OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)))
    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(UnreachableError, match="rows: cannot be written .*not connected"):
        with record_writer(str(tmp_path / "rows")) as writer:
            writer.write(bytes(1000))
    assert not list(tmp_path.iterdir())


def remote_records(tmp_path, count=64):
    rows = [np.full(LENGTH + 1, index, "<u4").tobytes() for index in range(count)]
    manifest = write(tmp_path / "zh", [rows[: count // 2], rows[count // 2 :]])
    return rows, Records("gs://bucket/zh", manifest.shards)


def test_rows_of_a_bucket_are_read_by_ranges_concurrently(tmp_path):
    rows, records = remote_records(tmp_path)
    indices = np.random.default_rng(0).permutation(64)
    with storage(tmp_path, seconds=0.05) as server:
        assert records.read(np.array([0])) == rows[:1]
        opened = server.requests
        assert records.read(indices) == [rows[index] for index in indices]
        assert server.requests <= opened + 64
        assert server.most_at_once >= 8


@pytest.mark.parametrize(
    ("seconds", "status", "message"),
    [
        (0, 403, "rows.*status code: 403; .*give this machine"),
        (3, 200, "no answer within 1 s"),
    ],
)
def test_denied_or_unresponsive_bucket_is_an_error(tmp_path, monkeypatch, seconds, status, message):
    monkeypatch.setattr(runtime_storage, "TIMEOUT_SECONDS", 1.0)
    _, records = remote_records(tmp_path, 2)
    with storage(tmp_path, seconds, status):
        with pytest.raises(UserError, match=message):
            records.read(np.array([0]))
