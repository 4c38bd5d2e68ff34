"""Documents in JSON Lines, Parquet and text files and in TFDS datasets, with their positions.

``read_blocks`` divides files into blocks of raw documents. This step is fast but sequential.
``parse_documents`` parses a block and can run in a different process.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
import json
from typing import Any, NamedTuple

from llama_cpt.data.sources.blocks import (
    BYTE_ORDER_MARK,
    FIRST_BLOCK,
    MAX_DOCUMENT_BYTES,
    Block,
    BlockStart,
    TooLarge,
    array_blocks,
    bounded,
    files_from,
    is_array,
    line_blocks,
    value_blocks,
)
from llama_cpt.data.sources.files import Sources, open_dataset, storage_errors_as_user_errors
from llama_cpt.data.sources.parquet import PARQUET, has_checksums, parquet_blocks
from llama_cpt.data.sources.streams import DECOMPRESSORS, open_stream, read, split_compression
from llama_cpt.data.sources.text_fields import Template, find_template, find_value, has_field
from llama_cpt.runtime.errors import UserError

LINES = (".jsonl", ".json", ".ndjson")
# Files that can also contain one array.
ARRAYS = (".json",)
TEXT = (".txt", ".md")
TFDS_RECORDS = 256
EMPTY = "empty text"
MAX_DETAIL_CHARACTERS = 300
_READ_BYTES = 4 << 20
# The byte order marks of encodings other than UTF-8. UTF-32 comes first, because its mark begins
# with the mark of UTF-16.
OTHER_ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class Document(NamedTuple):
    """A document with valid text, and its position in the sources."""

    path: str
    number: int
    """Line in JSON Lines, element of an array, row in Parquet and TFDS, from 1; 0 if the file is
    one document."""
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
        # The detail can contain text of the source, which must not control a terminal.
        detail = self.detail[:MAX_DETAIL_CHARACTERS]
        detail = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in detail)
        detail += "..." * (len(self.detail) > MAX_DETAIL_CHARACTERS)
        return f"{position}: {self.reason}" + (f" ({detail})" if detail else "")


def read_blocks(
    sources: Sources, text_field: str, block_bytes: int, start: BlockStart = FIRST_BLOCK
) -> Iterator[Block]:
    """Yield the documents of ``sources`` in blocks of about ``block_bytes``, starting at ``start``.

    A block ends with the document that reaches ``block_bytes``. The blocks are the same on every
    machine. ``text_field`` is a name or a template. A value in a block is a tuple of the values of
    the template's fields if the files have columns. Raises UserError for a file of an unknown
    format, a truncated file, or a Parquet file without a column of ``text_field``.
    """
    if sources.dataset:
        with storage_errors_as_user_errors(sources.dataset):
            yield from _dataset_blocks(sources, text_field, block_bytes, start.first)
        return
    for path, begin in files_from(sources, start):
        name, decompress = split_compression(path)
        with storage_errors_as_user_errors(path):
            if name.endswith(PARQUET):
                yield from parquet_blocks(path, text_field, block_bytes, begin.first)
            elif name.endswith(ARRAYS) and is_array(path, decompress):
                yield from array_blocks(path, decompress, block_bytes, begin.first)
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


def files_without_checksums(sources: Sources, text_field: str) -> list[str]:
    """Return the paths of the Parquet files in which damage to text would not be noticed."""
    files = [] if sources.dataset else [f for f in sources.files if f.endswith(PARQUET)]
    with ThreadPoolExecutor(16) as pool:
        verified = pool.map(lambda path: _is_verified(path, text_field), files)
        return [path for path, has in zip(files, verified, strict=True) if not has]


def _is_verified(path: str, text_field: str) -> bool:
    with storage_errors_as_user_errors(path):
        return has_checksums(path, text_field)


def parse_documents(block: Block, text_field: str) -> Iterator[Document | BadDocument]:
    """Yield the documents in ``block``; blank lines are skipped."""
    if isinstance(block.raw, bytes) or block.is_json:
        for number, raw in json_texts(block):
            yield _from_json(block.path, number, raw, text_field)
        return
    template = find_template(text_field)
    for offset, value in enumerate(block.raw):
        number = block.first + offset if block.first else 0
        if template and isinstance(value, tuple) and not isinstance(value, TooLarge):
            yield _from_template(block.path, number, template, value)
        else:
            yield _from_value(block.path, number, value)


def json_texts(block: Block) -> Iterator[tuple[int, Any]]:
    """Yield the number and the JSON text of each document in ``block``; skip blank lines."""
    raw = block.raw.split(b"\n") if isinstance(block.raw, bytes) else block.raw
    for number, text in enumerate(raw, block.first):
        if isinstance(text, TooLarge) or (text and not text.isspace()):
            yield number, bounded(text)


def json_object(
    path: str, number: int, raw: bytes | TooLarge, *, expected: str
) -> dict[str, Any] | BadDocument:
    """Return the JSON object in ``raw``, or a BadDocument.

    If ``raw`` is a JSON value of a different type, the detail of the BadDocument is ``expected``
    followed by the name of that type.
    """
    if isinstance(raw, TooLarge):
        return _too_large(path, number, raw)
    try:
        values = json.loads(_decode(raw))
    except UnicodeDecodeError as error:
        return BadDocument(path, number, "not UTF-8", str(error.reason))
    except (ValueError, RecursionError) as error:
        detail = str(error)
        if b"\r" in raw.rstrip():
            detail += "; a line must end with LF, not with CR alone"
        return BadDocument(path, number, "not JSON", detail)
    if not isinstance(values, dict):
        kind = type(values).__name__
        return BadDocument(path, number, "not a JSON object", f"{expected} {kind}")
    return values


def _decode(raw: bytes) -> str:
    """Return the text of ``raw`` without a byte order mark.

    Raises UnicodeDecodeError if ``raw`` is not UTF-8. The reason names a different encoding if
    ``raw`` begins with the byte order mark of that encoding.
    """
    for mark, encoding in OTHER_ENCODINGS.items():
        if raw.startswith(mark):
            reason = f"the file is {encoding}; convert it to UTF-8"
            raise UnicodeDecodeError("utf-8", raw[:4], 0, len(mark), reason)
    return raw.removeprefix(BYTE_ORDER_MARK).decode()


def _too_large(path: str, number: int, found: TooLarge) -> BadDocument:
    detail = f"it has {found.size:,} bytes or more; split it into several documents"
    return BadDocument(path, number, f"larger than {MAX_DOCUMENT_BYTES >> 20} MiB", detail)


def _from_json(path: str, number: int, raw: bytes | TooLarge, field: str) -> Document | BadDocument:
    """Return the document that ``field``, a name or a template, selects in a JSON object."""
    values = json_object(path, number, raw, expected="expected one object per line, not a")
    if isinstance(values, BadDocument):
        return values
    template = None if field in values else find_template(field)
    found = []
    for name in template.names if template else (field,):
        try:
            found.append(find_value(values, name))
        except KeyError:
            fields = ", ".join(values) or "none"
            return BadDocument(path, number, f"no field {name!r}", f"its fields: {fields}")
    if template:
        return _from_template(path, number, template, found)
    return _from_value(path, number, found[0])


def _from_template(
    path: str, number: int, template: Template, values: Iterable[Any]
) -> Document | BadDocument:
    """Return the document that ``template`` forms from ``values``, one of which must have text."""
    texts = []
    for name, value in zip(template.names, values, strict=True):
        found = _from_value(path, number, value)
        if isinstance(found, Document):
            texts.append(found.text)
        elif found.reason == EMPTY:
            texts.append(value.decode() if isinstance(value, bytes) else value)
        else:
            detail = f"field {name!r}" + (f": {found.detail}" if found.detail else "")
            return found._replace(detail=detail)
    if not "".join(texts).strip():
        return BadDocument(path, number, EMPTY, "in all fields of the template")
    return _from_value(path, number, bounded(template.fill(texts)))


def _from_value(path: str, number: int, value: Any) -> Document | BadDocument:
    """Return ``value`` as a document if it is valid text."""
    if isinstance(value, TooLarge):
        return _too_large(path, number, value)
    try:
        text = value
        if isinstance(value, bytes):
            # Only a text file begins with a byte order mark.
            text = value.decode() if number else _with_line_feeds(_decode(value))
        if not isinstance(text, str):
            detail = f"it is of type {type(text).__name__}"
            return BadDocument(path, number, "text is not a string", detail)
        source_bytes = len(text) if text.isascii() else len(text.encode())
    except UnicodeDecodeError as error:
        return BadDocument(path, number, "not UTF-8", str(error.reason))
    except UnicodeEncodeError:
        return BadDocument(path, number, "not UTF-8", "a lone surrogate")
    if not text or text.isspace():
        return BadDocument(path, number, EMPTY, "")
    return Document(path, number, text, source_bytes)


def _with_line_feeds(text: str) -> str:
    """Return ``text`` with LF as the only line end, as Python reads text files."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _text_block(path: str, decompress: Any) -> Iterator[Block]:
    """Yield a text file as a block with one document."""
    parts, size = [], 0
    with open_stream(path, decompress) as (disk, file):
        while size <= MAX_DOCUMENT_BYTES and (part := read(file, _READ_BYTES, path)):
            parts.append(part)
            size += len(part)
        raw = TooLarge(size) if size > MAX_DOCUMENT_BYTES else b"".join(parts)
        yield Block(path, 0, [raw], size, float(disk.tell()))


def _dataset_blocks(sources: Sources, field: str, block_bytes: int, first: int) -> Iterator[Block]:
    """Yield the values of ``field`` in a TFDS dataset in blocks, starting at row ``first``."""
    builder, split = open_dataset(sources.dataset)
    fields = builder.info.features
    template = None if field in fields else find_template(field)
    names = template.names if template else (field,)
    for name in names:
        if not has_field(fields, name):
            raise UserError(
                f"{sources.dataset}: no field {name!r}; its fields: {', '.join(fields)}. Set "
                "text_field to one of them."
            )
    data = builder.as_data_source(split=split)
    starts = range(first - 1, len(data), TFDS_RECORDS)
    records = (data.__getitems__(range(s, min(s + TFDS_RECORDS, len(data)))) for s in starts)
    rows = (tuple(find_value(one, name) for name in names) for batch in records for one in batch)
    values = rows if template else (row[0] for row in rows)
    share = sum(stat["bytes"] for stat in sources.stats()) / max(len(data), 1)
    yield from value_blocks(sources.dataset, values, block_bytes, share, first)
