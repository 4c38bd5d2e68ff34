"""Throughput of the data loader per host if every read from storage is slow.

    python -m benchmarks.slow_storage [--hosts 20] [--seconds 0.05]

One process per host loads rows of 8,192 tokens from the same files. Every read from an ArrayRecord
file is delayed by ``--seconds``. The command prints the figures of the slowest host: the time to
the first batch of 16 rows, and the rows per second after the first batch.
"""

import argparse
import itertools
import multiprocessing
from pathlib import Path
import tempfile
import time
from typing import Any

from benchmarks.loader import CORPORA, open_loader, write_corpus
from llama_cpt.data import rows

BATCH = 16
BATCHES = 60


class LateReader:
    """An ArrayRecord reader that waits ``seconds`` for each requested record before it reads."""

    def __init__(self, reader: Any, seconds: float) -> None:
        self._reader, self._seconds = reader, seconds

    def read(self, indices: list[int]) -> list[bytes]:
        """Return the records at ``indices`` after the delay."""
        time.sleep(self._seconds * len(indices))
        return self._reader.read(indices)


def run_host(folder: Path, host: int, seconds: float, measured: Any) -> None:
    """Measure one host, and put the result into the queue ``measured``.

    The result is the seconds to the first batch and the rows per second after the first batch.
    """
    open_reader = rows._open_reader

    def open_late(path: str, records: int) -> LateReader:
        time.sleep(seconds)
        return LateReader(open_reader(path, records), seconds)

    rows._open_reader = open_late
    start = time.perf_counter()
    source = open_loader(folder, BATCH, host * BATCHES)
    next(source)
    first, start = time.perf_counter() - start, time.perf_counter()
    for _ in itertools.islice(source, BATCHES):
        pass
    measured.put((first, BATCH * BATCHES / (time.perf_counter() - start)))
    source.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.05, help="delay of every read")
    options = parser.parse_args()
    # With fork, all processes share one import. Fork is safe, because no thread has started yet.
    processes = multiprocessing.get_context("fork")
    measured = processes.SimpleQueue()
    with tempfile.TemporaryDirectory() as name:
        for seed, corpus in enumerate(CORPORA):
            write_corpus(Path(name) / corpus, 512, seed)
        hosts = [
            processes.Process(target=run_host, args=(Path(name), host, options.seconds, measured))
            for host in range(options.hosts)
        ]
        for host in hosts:
            host.start()
        found = [measured.get() for _ in hosts]
        for host in hosts:
            host.join()
    print(
        f"{options.hosts} hosts, {options.seconds * 1e3:.0f} ms per read: first batch after "
        f"{max(first for first, _ in found):.2f} s, then {min(rate for _, rate in found):.1f} "
        "rows/s on the slowest host"
    )


if __name__ == "__main__":
    main()
