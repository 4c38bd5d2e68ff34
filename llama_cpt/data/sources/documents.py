"""Documents of JSON Lines, Parquet, text files and TFDS, each with the place it came from.

Two halves: ``read_blocks`` cuts files into blocks of raw documents, which costs little, and
``parse_documents`` parses a block, in whatever process the block has been sent to.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import itertools
import json
import os
from typing import Any, NamedTuple

from llama_cpt.data.sources.files import Sources, open_dataset, storage_errors_as_user_errors
from llama_cpt.data.sources.streams import (
    DECOMPRESSORS,
    decoding_errors,
    open_stream,
    read,
    skip,
    split_compression,
)
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import open_for_reading

LINES = (".jsonl", ".json", ".ndjson")
TEXT = (".txt", ".md")
PARQUET = (".parquet",)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET_ROWS = 256
TFDS_RECORDS = 256


class Document(NamedTuple):
    """A good document."""

    path: str
    number: int
    """Its line in JSON Lines, its row elsewhere, from 1; 0 where the file is one document."""
    text: str
    source_bytes: int
    """Of ``text`` in UTF-8."""


class BadDocument(NamedTuple):
    """A document that cannot be used, and why."""

    path: str
    number: int
    reason: str
    """One of few, to be counted by."""
    detail: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.number}" if self.number else self.path
        return f"{place}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Block:
    """Consecutive raw documents of one file."""

    path: str
    first: int
    """Line or row of the first document, from 1; 0 where the file is one document."""
    raw: bytes | list[Any]
    """Whole lines of JSON; or the values of the text field, each bytes or str if it is good."""
    size: int
    """Bytes of ``raw``."""
    disk_bytes: float
    """How much of the file on disk it took."""


@dataclass(frozen=True)
class BlockStart:
    """Where a block begins: from there on the same blocks come out as from the corpus's start."""

    file: int = 0
    """Its number among the sources' files; 0 in a TFDS dataset."""
    first: int = 1
    """As the block's."""
    offset: int = 0
    """Bytes of (decompressed) lines before it in its file."""


FIRST_BLOCK = BlockStart()


def read_blocks(
    sources: Sources, text_field: str, block_bytes: int, start: BlockStart = FIRST_BLOCK
) -> Iterator[Block]:
    """All of ``sources`` from ``start`` on, in blocks of ``block_bytes`` or a document more.

    The same blocks come out on every machine. Raises UserError for a file that is broken as a
    whole: of no known kind, cut short, a Parquet file without column ``text_field``.
    """
    if sources.dataset:
        with storage_errors_as_user_errors(sources.dataset):
            yield from _dataset_blocks(sources, text_field, block_bytes, start.first)
        return
    for path, begin in files_from(sources, start):
        name, decompress = split_compression(path)
        with storage_errors_as_user_errors(path):
            if name.endswith(PARQUET):
                yield from _parquet_blocks(path, text_field, block_bytes, begin.first)
            elif name.endswith(LINES):
                yield from line_blocks(path, decompress, block_bytes, begin)
            elif name.endswith(TEXT):
                yield from _text_block(path, decompress)
            else:
                raise UserError(
                    f"{path}: of no known kind; documents are {', '.join(LINES + TEXT)} files, "
                    f"also with {', '.join(DECOMPRESSORS)}, or {', '.join(PARQUET)}."
                )


def files_from(sources: Sources, start: BlockStart) -> Iterator[tuple[str, BlockStart]]:
    """The files from ``start`` on, and where to begin in each."""
    for number, path in enumerate(sources.files[start.file :], start.file):
        yield path, start if number == start.file else BlockStart(number)


def parse_documents(block: Block, text_field: str) -> Iterator[Document | BadDocument]:
    """Parse ``block``; blank lines are no documents."""
    if isinstance(block.raw, bytes):
        for number, line in enumerate(block.raw.split(b"\n"), block.first):
            if line and not line.isspace():
                yield _from_line(block.path, number, line, text_field)
    else:
        for offset, value in enumerate(block.raw):
            number = block.first + offset if block.first else 0
            yield _from_value(block.path, number, value)


def json_object(path: str, number: int, raw: bytes, *, wanted: str) -> dict[str, Any] | BadDocument:
    """The object that ``raw`` is; ``wanted`` and the kind that it is instead tell what is wrong."""
    try:
        values = json.loads(raw.removeprefix(BYTE_ORDER_MARK).decode())
    except UnicodeDecodeError as error:
        return BadDocument(path, number, "not UTF-8", str(error.reason))
    except (ValueError, RecursionError) as error:
        return BadDocument(path, number, "not JSON", str(error))
    if not isinstance(values, dict):
        kind = type(values).__name__
        return BadDocument(path, number, "not a JSON object", f"{wanted} {kind}")
    return values


def _from_line(path: str, number: int, line: bytes, field: str) -> Document | BadDocument:
    values = json_object(path, number, line, wanted="one object a line, not a")
    if isinstance(values, BadDocument):
        return values
    if field not in values:
        there = ", ".join(values) or "none"
        return BadDocument(path, number, f"no field {field!r}", f"its fields: {there}")
    return _from_value(path, number, values[field])


def _from_value(path: str, number: int, value: Any) -> Document | BadDocument:
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str):
            detail = f"it is of type {type(text).__name__}"
            return BadDocument(path, number, "text is not a string", detail)
        source_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeDecodeError as error:
        return BadDocument(path, number, "not UTF-8", str(error.reason))
    except UnicodeEncodeError:
        return BadDocument(path, number, "not UTF-8", "a lone surrogate")
    if not text or text.isspace():
        return BadDocument(path, number, "empty text", "")
    return Document(path, number, text, source_bytes)


def line_blocks(
    path: str, decompress: Any, block_bytes: int, start: BlockStart = FIRST_BLOCK
) -> Iterator[Block]:
    """Whole lines of a file, in blocks of about ``block_bytes``."""
    line, held = start.first, []
    with open_stream(path, decompress) as (disk, file):
        skip(disk, file, start.offset, path)
        at = disk.tell() if start.offset else 0
        # Reads end where those of a reader from the file's start do, and so do the blocks.
        size = block_bytes - start.offset % block_bytes
        while chunk := read(file, size, path, f" after line {line}"):
            size = block_bytes
            cut = chunk.rfind(b"\n") + 1
            if not cut:
                held.append(chunk)
                continue
            raw = b"".join([*held, chunk[:cut]])
            held = [chunk[cut:]]
            yield Block(path, line, raw, len(raw), float(disk.tell() - at))
            line, at = line + raw.count(b"\n"), disk.tell()
        if raw := b"".join(held):
            yield Block(path, line, raw, len(raw), float(disk.tell() - at))


def _text_block(path: str, decompress: Any) -> Iterator[Block]:
    with open_stream(path, decompress) as (disk, file):
        raw = read(file, -1, path)
        raw = raw.removeprefix(BYTE_ORDER_MARK)
        yield Block(path, 0, [raw], len(raw), float(disk.tell()))


def _parquet_blocks(path: str, field: str, block_bytes: int, first: int) -> Iterator[Block]:
    import pyarrow  # only this kind needs it
    import pyarrow.parquet

    with open_for_reading(path) as file, decoding_errors(path, "", pyarrow.ArrowException):
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{path}: not a Parquet file ({error}).") from None
        schema = table.schema_arrow
        if field not in schema.names:
            there = ", ".join(schema.names)
            raise UserError(f"{path}: no column {field!r}; its columns: {there}.")
        kind = schema.field(field).type
        kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if not any(
            is_kind(kind)
            for is_kind in (
                pyarrow.types.is_string,
                pyarrow.types.is_large_string,
                pyarrow.types.is_binary,
                pyarrow.types.is_large_binary,
            )
        ):
            raise UserError(f"{path}: column {field!r} holds {kind}, not strings.")
        groups, skipped = _groups_from(table.metadata, first)
        batches = table.iter_batches(PARQUET_ROWS, row_groups=groups, columns=[field])
        # As bytes: a string that is not UTF-8 is then one bad document, not a broken file.
        values = (v for b in batches for v in b.column(0).cast(pyarrow.large_binary()).to_pylist())
        values = itertools.islice(values, skipped, None)
        share = file.seek(0, os.SEEK_END) / max(table.metadata.num_rows, 1)
        yield from value_blocks(path, values, block_bytes, share, first)


def _groups_from(metadata: Any, first: int) -> tuple[list[int], int]:
    """The row groups from row ``first`` on, and how many rows of them come before it."""
    group, skipped = 0, first - 1
    while group < metadata.num_row_groups and skipped >= metadata.row_group(group).num_rows:
        skipped -= metadata.row_group(group).num_rows
        group += 1
    return list(range(group, metadata.num_row_groups)), skipped


def _dataset_blocks(sources: Sources, field: str, block_bytes: int, first: int) -> Iterator[Block]:
    builder, split = open_dataset(sources.dataset)
    there = list(builder.info.features)
    if field not in there:
        raise UserError(f"{sources.dataset}: no field {field!r}; its fields: {', '.join(there)}.")
    data = builder.as_data_source(split=split)
    starts = range(first - 1, len(data), TFDS_RECORDS)
    records = (data.__getitems__(range(s, min(s + TFDS_RECORDS, len(data)))) for s in starts)
    values = (record[field] for batch in records for record in batch)
    share = sum(stat["bytes"] for stat in sources.stats()) / max(len(data), 1)
    yield from value_blocks(sources.dataset, values, block_bytes, share, first)


def value_blocks(
    path: str, values: Iterator[Any], block_bytes: int, disk_bytes: float, first: int = 1
) -> Iterator[Block]:
    """Blocks of ``values``, row ``first`` and on, each of which took ``disk_bytes`` on disk."""
    held, size = [], 0
    for value in values:
        held.append(value)
        size += len(value) if isinstance(value, bytes | str) else 0
        if size >= block_bytes:
            yield Block(path, first, held, size, disk_bytes * len(held))
            first, held, size = first + len(held), [], 0
    if held:
        yield Block(path, first, held, size, disk_bytes * len(held))
