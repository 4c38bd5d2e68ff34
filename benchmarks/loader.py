"""Rows of 8,192 tokens per second through ``batches`` from local disk, and time to a first batch.

    python -m benchmarks.loader [--rows 8192] [--folder DIR]

The command writes random rows of four corpora as ArrayRecord shards, reads them on one core and on
all cores, with the files in the page cache and dropped from it, prints one line per setting, and
removes the files.
"""

import argparse
from collections.abc import Iterator
import contextlib
from fractions import Fraction
import itertools
import os
from pathlib import Path
import statistics
import tempfile
import time

import numpy as np

from llama_cpt.data.loader import batches
from llama_cpt.data.mixture import Mixture, MixtureCorpus
from llama_cpt.data.rows import Manifest, TokenRows, record_writer, write_manifest

LENGTH = 8192
BOS = 0
DOCUMENT_TOKENS = 800
SHARDS = 4
CORPORA = "zh", "zh_web", "en", "code"
SECONDS = 5.0
REPEATS = 51


def write_corpus(folder: Path, rows: int, seed: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(seed)
    shards = []
    for shard in range(SHARDS):
        name = f"rows-{shard:05d}-of-{SHARDS:05d}.array_record"
        with record_writer(str(folder / name)) as writer:
            for _ in range(rows // SHARDS):
                row = random.integers(1, 128_000, LENGTH + 1).astype("<u4")
                row[random.integers(0, LENGTH, LENGTH // DOCUMENT_TOKENS)] = BOS
                writer.write(row.tobytes())
        shards.append((name, rows // SHARDS))
    manifest = Manifest(
        corpus=folder.name,
        tokenizer="",
        sequence_length=LENGTH,
        text_field="text",
        bad_documents="error",
        sources=[],
        shards=shards,
        documents=0,
        tokens=rows * (LENGTH + 1),
        dropped_tokens=0,
        source_bytes=0,
        characters=0,
        skipped={},
        checked_documents=0,
        lossy_documents=0,
    )
    write_manifest(str(folder), manifest)


def drop_from_page_cache(folder: Path) -> None:
    for file in folder.rglob("*.array_record"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    yield
    os.sched_setaffinity(0, before)


def open_loader(folder: Path, batch_size: int, step: int) -> Iterator:
    sources = [TokenRows(str(folder / name)) for name in CORPORA]
    members = [
        MixtureCorpus(name, len(source), Fraction(1))
        for name, source in zip(CORPORA, sources, strict=True)
    ]
    mixture = Mixture(((0, Fraction("0.33")),), tuple(members[:2]), tuple(members[2:]), seed=0)
    return batches(
        mixture,
        sources,
        bos_id=BOS,
        global_batch_size=batch_size,
        num_microbatches=1,
        start_row=step * batch_size,
    )


def rows_per_second(folder: Path, batch_size: int, rows: int) -> tuple[float, float]:
    """Return rows per second of wall clock, and per second of processor time of all threads.

    At most ``rows`` rows are read.
    """
    source = open_loader(folder, batch_size, 0)
    next(source)
    start, spent = time.perf_counter(), time.process_time()
    done = 0
    for _ in itertools.islice(source, rows // batch_size):
        done += batch_size
        if time.perf_counter() - start > SECONDS:
            break
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - spent
    source.close()
    return done / seconds, done / cpu_seconds


def seconds_to_first_batch(folder: Path, step: int) -> float:
    start = time.perf_counter()
    source = open_loader(folder, 32, step)
    next(source)
    seconds = time.perf_counter() - start
    source.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=8192, help="rows of the four corpora together")
    parser.add_argument("--folder", help="folder for the files; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for seed, corpus in enumerate(CORPORA):
            write_corpus(folder / corpus, options.rows // len(CORPORA), seed)
        cores = sorted(os.sched_getaffinity(0))
        for files in ("page cache", "disk"):
            for count, batch_size in itertools.product((1, len(cores)), (16, 128)):
                if files == "disk":
                    drop_from_page_cache(folder)
                with on_cores(set(cores[:count])):
                    wall, cpu = rows_per_second(folder, batch_size, options.rows // 2)
                print(
                    f"{files:>10}, {count} cores, batches of {batch_size:>3}: {wall:7,.0f} rows/s, "
                    f"{cpu:7,.0f} rows per second of processor time"
                )
        seconds = {step: [] for step in (10, 100_000)}
        for step in list(seconds) * REPEATS:
            seconds[step].append(seconds_to_first_batch(folder, step))
        for step, all_seconds in seconds.items():
            print(f"first batch of step {step:>7,}: {statistics.median(all_seconds) * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
