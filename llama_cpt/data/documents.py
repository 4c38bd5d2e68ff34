"""Documents from JSON Lines, Parquet, text files or TFDS, each with the place it came from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import glob
import gzip
import io
import json
import re
from typing import Any

import fsspec
import pyarrow.parquet

from llama_cpt.config import CorpusConfig
from llama_cpt.errors import UserError

# A part is tokenized by one process. Parts depend on the sources alone, never on the number of
# workers, so that the same shards come out of any machine.
PART_BYTES = 32 << 20
PART_DOCUMENTS = 100_000
# Consecutive documents that go to one part.
SPAN = 256


@dataclass(frozen=True)
class Part:
    """One of ``count`` parts of a source; spans of its documents are dealt to them in turn."""

    source: str
    number: int
    count: int
    text_field: str


@dataclass(frozen=True)
class BadDocument:
    """A document that cannot be read, and why."""

    place: str
    reason: str


def sources_of(corpus: CorpusConfig) -> list[str]:
    """The files of ``corpus`` in order, or its TFDS name. Raises UserError where there are none."""
    if corpus.source.startswith("tfds:"):
        return [corpus.source]
    if "://" in corpus.source:
        system, path = fsspec.core.url_to_fs(corpus.source)
        found = [system.unstrip_protocol(name) for name in system.glob(path)]
    else:
        found = glob.glob(corpus.source, recursive=True)
    if not found:
        raise UserError(f"corpus {corpus.name!r}: no file matches {corpus.source}.")
    return sorted(found)


def parts_of(source: str, text_field: str) -> list[Part]:
    """``source`` in as many parts as its size asks for."""
    if source.startswith("tfds:"):
        count = -(-len(_tfds(source)) // PART_DOCUMENTS)
    else:
        system, path = fsspec.core.url_to_fs(source)
        count = -(-system.size(path) // PART_BYTES)
    return [Part(source, number, max(count, 1), text_field) for number in range(max(count, 1))]


def read_part(part: Part) -> Iterator[str | BadDocument]:
    """The documents of ``part`` in order. Raises UserError where the source itself is broken."""
    for number, (place, make) in enumerate(_entries(part)):
        if (number // SPAN) % part.count == part.number:
            yield _checked(place, make)


def _checked(place: str, make: Callable[[], Any]) -> str | BadDocument:
    try:
        text = make()
        if not isinstance(text, str):
            return BadDocument(place, f"the text is {type(text).__name__}, not a string")
        text.encode()
    except UnicodeError as error:
        return BadDocument(place, f"not UTF-8 ({error.reason})")
    except json.JSONDecodeError as error:
        return BadDocument(place, f"not JSON ({error.msg})")
    except KeyError as error:
        return BadDocument(place, error.args[0])
    return text


def _entries(part: Part) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(place, function that gives the text) of every document of the part's source."""
    name = re.sub(r"\.(gz|zst|bz2|xz)$", "", part.source)
    if part.source.startswith("tfds:"):
        return _from_tfds(part)
    if name.endswith(".parquet"):
        return _from_parquet(part)
    if name.endswith((".jsonl", ".json", ".ndjson")):
        return _from_lines(part)
    if name.endswith((".txt", ".md")):
        return _from_text(part)
    raise UserError(
        f"{part.source}: of no known kind; documents are .jsonl, .parquet, .txt or .md files, "
        "the former also with .gz, .bz2, .xz or .zst."
    )


def _from_lines(part: Part) -> Iterator[tuple[str, Callable[[], Any]]]:
    def text(line: bytes) -> Any:
        values = json.loads(line.decode())
        return _field(values, part.text_field)

    number = 0
    with _open(part.source) as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{part.source}:{number}", lambda line=line: text(line)
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise UserError(
                f"{part.source}: broken after line {number} ({error}); is the file whole?"
            ) from None


def _from_parquet(part: Part) -> Iterator[tuple[str, Callable[[], Any]]]:
    with fsspec.open(part.source, "rb") as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{part.source}: not a Parquet file ({error}).") from None
        if part.text_field not in table.schema_arrow.names:
            names = ", ".join(table.schema_arrow.names)
            raise UserError(f"{part.source}: no column {part.text_field!r}; there are: {names}.")
        row = 0
        for batch in table.iter_batches(SPAN, columns=[part.text_field]):
            for text in batch.column(0):
                row += 1
                yield f"{part.source}:row {row}", text.as_py


def _from_text(part: Part) -> Iterator[tuple[str, Callable[[], Any]]]:
    with _open(part.source) as file:
        content = file.read()
    yield part.source, content.decode


def _from_tfds(part: Part) -> Iterator[tuple[str, Callable[[], Any]]]:
    data = _tfds(part.source)

    def text(index: int) -> Any:
        value = _field(data[index], part.text_field)
        return value.decode() if isinstance(value, bytes) else value

    for index in range(len(data)):
        yield f"{part.source}:{index}", lambda index=index: text(index)


def _tfds(source: str) -> Any:
    import tensorflow_datasets as tfds  # seconds to import, and only this kind needs it

    name, _, split = source.removeprefix("tfds:").partition(":")
    try:
        return tfds.data_source(name, split=split or "train")
    except Exception as error:  # tfds has no common class for what a user can mend
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{source}: {reason} (build it as ArrayRecord: `tfds build --file_format=array_record`)"
        ) from None


def _field(values: Any, name: str) -> Any:
    if not isinstance(values, dict):
        raise KeyError(f"not an object with fields but {type(values).__name__}")
    if name not in values:
        raise KeyError(f"no field {name!r}; there are: {', '.join(map(str, values))}")
    return values[name]


def _open(source: str) -> io.BufferedIOBase:
    return fsspec.open(source, "rb", compression="infer").open()
