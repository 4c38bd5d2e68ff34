"""Throughput of ``prepare``, relative to the throughput of the tokenizer alone on the same text.

    python -m benchmarks.prepare TOKENIZER FILE [FILE ...] [--workers N] [--copies N] ...

FILE is a JSON Lines file, plain or compressed, with a field ``text``. The first measurement encodes
all texts with the tokenizer in one process, without the time to read and parse them. The second
measurement runs ``prepare`` with N processes, including the time to start the processes.
``prepare`` reads, decompresses, parses and encodes the texts, cuts them into rows, and compresses
and writes the rows.

The two measurements are repeated in turn. For each measurement, the command prints two rates in
million tokens: per second of processor time of all processes, and per second of wall-clock time and
process. Other work on the machine affects the first rate less than the second rate. Last, the
command prints the median ratios of the rates.
"""

import argparse
import os
from pathlib import Path
import resource
import statistics
import tempfile
import time
from typing import Any

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.sources.documents import Document, parse_documents, read_blocks
from llama_cpt.data.sources.files import find_sources
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer


def processor_seconds() -> float:
    """Return the processor seconds of this process and of all of its terminated children."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def measure(work) -> tuple[int, float, float]:
    """Call ``work``, and return its number of tokens, processor seconds and wall seconds."""
    processor, wall = processor_seconds(), time.perf_counter()
    tokens = work()
    return tokens, processor_seconds() - processor, time.perf_counter() - wall


def texts_of(files: list[str]) -> list[str]:
    """Return the texts of all documents in ``files``."""
    return [
        document.text
        for file in files
        for block in read_blocks(find_sources(CorpusConfig("corpus", file)), "text", 2 << 20)
        for document in parse_documents(block, "text")
        if isinstance(document, Document)
    ]


def encode_alone(tokenizer: Tokenizer, texts: list[str], copies: int) -> int:
    """Encode ``texts`` ``copies`` times, and return the number of tokens."""
    # For tiktoken, call the library directly, without our handling of very long runs of characters.
    encode = tokenizer.encode
    if tokenizer.kind == "tiktoken":
        wrapper: Any = tokenizer
        encode = wrapper._encoding.encode_ordinary
    return sum(len(encode(text)) for _ in range(copies) for text in texts)


def prepare_all(arguments: argparse.Namespace) -> int:
    """Prepare all files in a temporary folder, and return the number of tokens."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        (Path(folder) / "sources").mkdir()
        for number, file in enumerate(arguments.files * arguments.copies):
            name = f"{number:05}-{Path(file).name}"
            os.symlink(Path(file).resolve(), Path(folder) / "sources" / name)
        corpus = CorpusConfig("corpus", f"{folder}/sources/*")
        prepared = f"{folder}/prepared"
        config = DataConfig(
            arguments.tokenizer, prepared, arguments.length, 1.0, additional=(corpus,)
        )
        return prepare(config, arguments.workers).rows["corpus"].tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument(
        "--copies",
        type=int,
        default=1,
        help="repetitions of the text, which reduce the share of the processes' start in the time",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="folder for the rows (default: a temporary folder)")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.tokenizer)
    texts = texts_of(arguments.files)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts):,} documents, {megabytes:.1f} MB of text, {arguments.workers} workers")
    pairs = []
    for _ in range(arguments.repeats):
        alone = measure(lambda: encode_alone(tokenizer, texts, arguments.copies))
        whole = measure(lambda: prepare_all(arguments))
        pairs.append((*rates(alone, 1), *rates(whole, arguments.workers)))
        print("{:.2f} {:.2f} alone, {:.2f} {:.2f} prepare".format(*pairs[-1]), flush=True)
    by_processor = statistics.median(pair[2] / pair[0] for pair in pairs)
    by_wall = statistics.median(pair[3] / pair[1] for pair in pairs)
    print(f"ratio by processor time {by_processor:.3f}, by wall clock {by_wall:.3f} (goal 0.8)")


def rates(measured: tuple[int, float, float], processes: int) -> tuple[float, float]:
    """Return million tokens per second of processor time, and per wall second and process.

    ``measured`` are the tokens, processor seconds and wall seconds.
    """
    tokens, processor, wall = measured
    return tokens / processor / 1e6, tokens / wall / processes / 1e6


if __name__ == "__main__":
    main()
