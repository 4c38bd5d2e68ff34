"""Documents in JSON Lines, Parquet and text files and in TFDS datasets, with their positions.

``read_blocks`` divides files into blocks of raw documents. This step is fast but sequential.
``parse_documents`` parses a block and can run in a different process.
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
    """A document with valid text, and its position in the sources."""

    path: str
    number: int
    """Line in JSON Lines, row in Parquet and TFDS, from 1; 0 if the file is one document."""
    text: str
    source_bytes: int
    """UTF-8 bytes of ``text``."""


class BadDocument(NamedTuple):
    """A document that cannot be used for training, with its position and the reason."""

    path: str
    number: int
    reason: str
    """The kind of error. The wording must not change, because manifests use reasons as keys."""
    detail: str

    def __str__(self) -> str:
        position = f"{self.path}:{self.number}" if self.number else self.path
        return f"{position}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Block:
    """Consecutive raw documents of one file, which are read as a unit."""

    path: str
    first: int
    """Line or row of the first document, from 1; 0 if the file is one document."""
    raw: bytes | list[Any]
    """Whole lines of JSON Lines, or a list of values, which are bytes or str if they are valid."""
    size: int
    """Size of ``raw`` in bytes."""
    disk_bytes: float
    """Number of bytes that the block takes in the file, which can be compressed."""


@dataclass(frozen=True)
class BlockStart:
    """The position at which a block starts.

    Reading from this position yields the same blocks as reading from the start of the sources.
    """

    file: int = 0
    """Index of the file in ``Sources.files``; 0 for a TFDS dataset."""
    first: int = 1
    """Line or row of the first document, as in ``Block``."""
    offset: int = 0
    """Number of decompressed bytes of the file before the block, used for files of lines."""


FIRST_BLOCK = BlockStart()


def read_blocks(
    sources: Sources, text_field: str, block_bytes: int, start: BlockStart = FIRST_BLOCK
) -> Iterator[Block]:
    """Yield the documents of ``sources`` in blocks of about ``block_bytes``, starting at ``start``.

    A block ends with the document that reaches ``block_bytes``. The blocks are the same on every
    machine. Raises UserError for a file of an unknown format, a truncated file, or a Parquet file
    without the column ``text_field``.
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
                    f"{path}: unknown format; documents must be {', '.join(LINES + TEXT)} files, "
                    f"which can be compressed ({', '.join(DECOMPRESSORS)}), or "
                    f"{', '.join(PARQUET)} files."
                )


def files_from(sources: Sources, start: BlockStart) -> Iterator[tuple[str, BlockStart]]:
    """Yield the path of each file to read, and the position at which to start reading the file.

    ``start`` determines the first file and the position in this file.
    """
    for number, path in enumerate(sources.files[start.file :], start.file):
        yield path, start if number == start.file else BlockStart(number)


def parse_documents(block: Block, text_field: str) -> Iterator[Document | BadDocument]:
    """Yield the documents in ``block``; blank lines are skipped."""
    if isinstance(block.raw, bytes):
        for number, line in enumerate(block.raw.split(b"\n"), block.first):
            if line and not line.isspace():
                yield _from_line(block.path, number, line, text_field)
    else:
        for offset, value in enumerate(block.raw):
            number = block.first + offset if block.first else 0
            yield _from_value(block.path, number, value)


def json_object(
    path: str, number: int, raw: bytes, *, expected: str
) -> dict[str, Any] | BadDocument:
    """Return the JSON object in ``raw``, or a BadDocument.

    If ``raw`` is a JSON value of a different type, the detail of the BadDocument is ``expected``
    followed by the name of that type.
    """
    try:
        values = json.loads(raw.removeprefix(BYTE_ORDER_MARK).decode())
    except UnicodeDecodeError as error:
        return BadDocument(path, number, "not UTF-8", str(error.reason))
    except (ValueError, RecursionError) as error:
        return BadDocument(path, number, "not JSON", str(error))
    if not isinstance(values, dict):
        kind = type(values).__name__
        return BadDocument(path, number, "not a JSON object", f"{expected} {kind}")
    return values


def _from_line(path: str, number: int, line: bytes, field: str) -> Document | BadDocument:
    """Return the document in the field ``field`` of a JSON object."""
    values = json_object(path, number, line, expected="expected one object per line, not a")
    if isinstance(values, BadDocument):
        return values
    if field not in values:
        fields = ", ".join(values) or "none"
        return BadDocument(path, number, f"no field {field!r}", f"its fields: {fields}")
    return _from_value(path, number, values[field])


def _from_value(path: str, number: int, value: Any) -> Document | BadDocument:
    """Return ``value`` as a document if it is valid text."""
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
    """Yield the lines of a file in blocks of whole lines, of about ``block_bytes`` bytes each."""
    line, held = start.first, []
    with open_stream(path, decompress) as (disk, file):
        skip(disk, file, start.offset, path)
        at = disk.tell() if start.offset else 0
        # The first read ends at a multiple of block_bytes, so that the blocks are the same as when
        # the file is read from its start.
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
    """Yield a text file as a block with one document."""
    with open_stream(path, decompress) as (disk, file):
        raw = read(file, -1, path)
        raw = raw.removeprefix(BYTE_ORDER_MARK)
        yield Block(path, 0, [raw], len(raw), float(disk.tell()))


def _parquet_blocks(path: str, field: str, block_bytes: int, first: int) -> Iterator[Block]:
    """Yield the values of column ``field`` in blocks, starting at row ``first``."""
    import pyarrow  # Imported here, because the import is slow and only Parquet needs it.
    import pyarrow.parquet

    with open_for_reading(path) as file, decoding_errors(path, "", pyarrow.ArrowException):
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{path}: not a Parquet file ({error}); is it complete?") from None
        schema = table.schema_arrow
        if field not in schema.names:
            columns = ", ".join(schema.names)
            raise UserError(
                f"{path}: no column {field!r}; its columns: {columns}. Set text_field to one of "
                "them."
            )
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
            raise UserError(
                f"{path}: column {field!r} holds {kind}, not strings; set text_field to a column "
                "of strings."
            )
        groups, skipped = _groups_from(table.metadata, first)
        batches = table.iter_batches(PARQUET_ROWS, row_groups=groups, columns=[field])
        # Values are read as bytes, so that invalid UTF-8 is one bad document and not a bad file.
        values = (v for b in batches for v in b.column(0).cast(pyarrow.large_binary()).to_pylist())
        values = itertools.islice(values, skipped, None)
        share = file.seek(0, os.SEEK_END) / max(table.metadata.num_rows, 1)
        yield from value_blocks(path, values, block_bytes, share, first)


def _groups_from(metadata: Any, first: int) -> tuple[list[int], int]:
    """Return the row group that contains row ``first`` and all later row groups, by index.

    The second result is the number of rows to skip in the first of these row groups.
    """
    group, skipped = 0, first - 1
    while group < metadata.num_row_groups and skipped >= metadata.row_group(group).num_rows:
        skipped -= metadata.row_group(group).num_rows
        group += 1
    return list(range(group, metadata.num_row_groups)), skipped


def _dataset_blocks(sources: Sources, field: str, block_bytes: int, first: int) -> Iterator[Block]:
    """Yield the values of ``field`` in a TFDS dataset in blocks, starting at row ``first``."""
    builder, split = open_dataset(sources.dataset)
    fields = list(builder.info.features)
    if field not in fields:
        raise UserError(
            f"{sources.dataset}: no field {field!r}; its fields: {', '.join(fields)}. Set "
            "text_field to one of them."
        )
    data = builder.as_data_source(split=split)
    starts = range(first - 1, len(data), TFDS_RECORDS)
    records = (data.__getitems__(range(s, min(s + TFDS_RECORDS, len(data)))) for s in starts)
    values = (record[field] for batch in records for record in batch)
    share = sum(stat["bytes"] for stat in sources.stats()) / max(len(data), 1)
    yield from value_blocks(sources.dataset, values, block_bytes, share, first)


def value_blocks(
    path: str, values: Iterator[Any], block_bytes: int, disk_bytes: float, first: int = 1
) -> Iterator[Block]:
    """Yield ``values`` in blocks of about ``block_bytes`` bytes.

    ``first`` is the row of the first value. Each value takes ``disk_bytes`` bytes on disk.
    """
    held, size = [], 0
    for value in values:
        held.append(value)
        size += len(value) if isinstance(value, bytes | str) else 0
        if size >= block_bytes:
            yield Block(path, first, held, size, disk_bytes * len(held))
            first, held, size = first + len(held), [], 0
    if held:
        yield Block(path, first, held, size, disk_bytes * len(held))
