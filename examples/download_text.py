"""Download of Wikipedia articles as public text for the studies, in one or more languages.

    python -m examples.download_text zh en --output data/public --megabytes 60
    export LLAMA_CPT_DATA=$PWD/data/public

The result has the layout that configs/real_text and configs/study read:
``corpus/LANGUAGE/LANGUAGE.train-00000.jsonl.gz`` and ``corpus/LANGUAGE/LANGUAGE.valid.jsonl.gz``,
with an object ``{"text", "source"}`` per line. The articles come from the dataset
wikimedia/wikipedia on the Hugging Face Hub. Their license is CC BY-SA 4.0, and ``source`` is the
URL of the article, for attribution. The studies in docs/notes used different text, so a study on
these articles gives different figures.
"""

import argparse
from collections.abc import Iterable, Iterator
import gzip
import hashlib
import json
from pathlib import Path
import sys
from typing import Any

from huggingface_hub import HfFileSystem
import pyarrow.parquet as parquet

from llama_cpt.runtime.atomic import atomic_dir
from llama_cpt.runtime.errors import UsageError, UserError, one_line_errors
from llama_cpt.runtime.progress import Progress
from llama_cpt.weights.hub import hub_errors

DATASET = "datasets/wikimedia/wikipedia"
SNAPSHOT = "20231101"
SHORTEST = 400
"""Minimum size of an article, in bytes of UTF-8 text."""
HELD_OUT = 50
"""One in HELD_OUT articles is held out. The hash of the text selects the articles."""
HELD_OUT_ARTICLES = 500
"""Maximum number of held-out articles per language. Further held-out articles are discarded."""
ROWS = 256
"""Number of articles that are read at a time."""


def main(arguments: list[str]) -> int:
    """Download each language whose folder does not exist yet; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.download_text",
        description="Download Wikipedia articles as training and held-out text.",
    )
    parser.add_argument("languages", nargs="+", metavar="LANGUAGE", help="Wikipedia code, e.g. zh")
    parser.add_argument("--output", required=True, help="folder for LLAMA_CPT_DATA")
    parser.add_argument("--megabytes", type=float, default=60.0, help="training text per language")
    options = parser.parse_args(arguments)
    if not options.megabytes > 0:
        raise UsageError(f"--megabytes is {options.megabytes:g}; it must be above 0.")
    for language in options.languages:
        folder = Path(options.output, "corpus", language)
        if folder.exists():
            print(f"{folder}: skipped, because the folder exists")
            continue
        counts = write_corpus(open_shards(language), language, folder, int(options.megabytes * 1e6))
        print(f"{folder}: {counts[0]:,} training and {counts[1]:,} held-out articles")
    print(f"export LLAMA_CPT_DATA={Path(options.output).resolve()}")
    return 0


def open_shards(language: str) -> Iterator[Any]:
    """Yield the dataset's Parquet files for a language in the order of their names.

    The files are open for reading. Raises UserError if the dataset has no files for the language.
    """
    hub = HfFileSystem()
    pattern = f"{DATASET}/{SNAPSHOT}.{language}/*.parquet"
    paths = sorted(str(path) for path in hub.glob(pattern))
    if not paths:
        raise UserError(f"{pattern}: no such files; use a Wikipedia language code, such as zh.")
    for path in paths:
        with hub.open(path, "rb") as file:
            yield file


def write_corpus(files: Iterable[Any], language: str, folder: Path, limit: int) -> tuple[int, int]:
    """Write articles to ``folder`` until the training text has ``limit`` bytes.

    ``files`` are open Parquet files. Returns the number of training articles and the number of
    held-out articles. If the function fails, it leaves no folder.
    """
    size = train = held_out = 0
    with (
        atomic_dir(str(folder)) as new,
        _writer(Path(new, f"{language}.train-00000.jsonl.gz")) as train_file,
        _writer(Path(new, f"{language}.valid.jsonl.gz")) as held_out_file,
        Progress(language, limit / 1e6, "MB") as progress,
    ):
        for text, source in _articles(files):
            line = json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n"
            if _is_held_out(text):
                if held_out < HELD_OUT_ARTICLES:
                    held_out_file.write(line)
                    held_out += 1
                continue
            train_file.write(line)
            train += 1
            size += len(text.encode())
            progress.update(len(text.encode()) / 1e6)
            if size >= limit:
                break
    return train, held_out


def _writer(path: Path) -> Any:
    return gzip.open(path, "wt", encoding="utf-8")


def _articles(files: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Yield the text and the URL of each article of at least SHORTEST bytes.

    Raises the errors of ``hub_errors``.
    """
    # The errors are caught here, because atomic_dir would report them as errors of the local disk.
    with hub_errors(DATASET, "Run the command again; it skips languages that are complete."):
        for file in files:
            for batch in parquet.ParquetFile(file).iter_batches(ROWS, columns=["text", "url"]):
                for row in batch.to_pylist():
                    if len(row["text"].encode()) >= SHORTEST:
                        yield row["text"], row["url"]


def _is_held_out(text: str) -> bool:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT == 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
