"""Throughput of the data loader from local disk, and the time to the first batch.

    python -m benchmarks.loader [--rows 8192] [--folder DIR]

The command writes random rows of 8,192 tokens for four corpora as ArrayRecord shards. It reads the
shards with ``batches`` on one core and on all cores, first from the page cache and then from disk,
and prints the rows per second of each setting. It also prints the time to the first batch at an
early and at a late step. Finally, it removes the files.
"""

import argparse
from collections.abc import Generator
import contextlib
from fractions import Fraction
import itertools
import os
from pathlib import Path
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from llama_cpt.data.loader import batches
from llama_cpt.data.mixture import Mixture, MixtureCorpus
from llama_cpt.data.rows import DOCUMENT_START, Manifest, TokenRows, record_writer, write_manifest

LENGTH = 8192
DOCUMENT_TOKENS = 800
SHARDS = 4
CORPORA = "zh", "zh_web", "en", "code"
SECONDS = 5.0
REPEATS = 51


def write_corpus(folder: Path, rows: int, seed: int) -> None:
    """Write ``rows`` random rows and their manifest to the new folder ``folder``."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    shards = []
    for shard in range(SHARDS):
        name = f"rows-{shard:05d}-of-{SHARDS:05d}.array_record"
        with record_writer(str(folder / name)) as writer:
            for _ in range(rows // SHARDS):
                row = random.integers(1, 128_000, LENGTH + 1).astype("<u4")
                row[random.integers(0, LENGTH, LENGTH // DOCUMENT_TOKENS)] = DOCUMENT_START
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
    """Remove the pages of all shards in ``folder`` from the page cache."""
    for file in folder.rglob("*.array_record"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Generator[None]:
    """Context manager that restricts this process to ``cores``."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    yield
    os.sched_setaffinity(0, before)


def open_loader(folder: Path, batch_size: int, step: int) -> Generator[Any]:
    """Return the loader's iterator over batches of ``batch_size`` rows, starting at ``step``."""
    sources = [TokenRows(str(folder / name)) for name in CORPORA]
    members = [
        MixtureCorpus(name, len(source), ((0, Fraction(1)),))
        for name, source in zip(CORPORA, sources, strict=True)
    ]
    mixture = Mixture(((0, Fraction("0.33")),), tuple(members[:2]), tuple(members[2:]), seed=0)
    loader: Any = batches(
        mixture,
        sources,
        global_batch_size=batch_size,
        num_microbatches=1,
        start_row=step * batch_size,
    )
    return loader


def rows_per_second(folder: Path, batch_size: int, rows: int) -> tuple[float, float]:
    """Return the rows per second of wall-clock time and the rows per second of processor time.

    Processor time is summed over all threads. At most ``rows`` rows are read.
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
    """Return the seconds to open a loader at ``step`` and read its first batch of 32 rows."""
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
    parser.add_argument("--rows", type=int, default=8192, help="total rows of the four corpora")
    parser.add_argument("--folder", help="folder for the files (default: a temporary folder)")
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
