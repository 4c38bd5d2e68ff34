"""Records in JSON Lines files and in JSON files that contain one array, with their positions."""

from collections.abc import Iterator
import itertools
import json
from typing import Any, NamedTuple

from llama_cpt.data.sources.documents import (
    BYTE_ORDER_MARK,
    FIRST_BLOCK,
    LINES,
    BadDocument,
    Block,
    BlockStart,
    files_from,
    json_object,
    line_blocks,
    value_blocks,
)
from llama_cpt.data.sources.files import Sources, storage_errors_as_user_errors
from llama_cpt.data.sources.streams import open_stream, read, split_compression
from llama_cpt.runtime.errors import UserError


class Record(NamedTuple):
    """A JSON object and its position in the sources."""

    path: str
    number: int
    """Line in a JSON Lines file or index of the array element, counted from 1."""
    values: dict[str, Any]


def read_record_blocks(
    sources: Sources, block_bytes: int, start: BlockStart = FIRST_BLOCK
) -> Iterator[Block]:
    """Yield the records of ``sources`` in blocks of about ``block_bytes``, starting at ``start``.

    The field ``raw`` of a block contains whole lines of JSON Lines, or a list of array elements as
    JSON texts. Raises UserError if a file is damaged or its format is unknown.
    """
    if sources.dataset:
        raise UserError(
            f"{sources.dataset}: chat data must be {' or '.join(LINES)} files, not TFDS."
        )
    for path, begin in files_from(sources, start):
        name, decompress = split_compression(path)
        if not name.endswith(LINES):
            raise UserError(f"{path}: unknown format; chat data must be {', '.join(LINES)} files.")
        with storage_errors_as_user_errors(path):
            if _is_array(path, decompress):
                yield from _array_blocks(path, decompress, block_bytes, begin.first)
            else:
                yield from line_blocks(path, decompress, block_bytes, begin)


def parse_records(block: Block) -> Iterator[Record | BadDocument]:
    """Yield the records in ``block``; blank lines are skipped."""
    raw = block.raw.split(b"\n") if isinstance(block.raw, bytes) else block.raw
    for number, element in enumerate(raw, block.first):
        if element and not element.isspace():
            yield _record(block.path, number, element)


def _record(path: str, number: int, raw: bytes) -> Record | BadDocument:
    """Return the JSON object in ``raw`` as a record."""
    values = json_object(path, number, raw, expected="a record is not a")
    return values if isinstance(values, BadDocument) else Record(path, number, values)


def _is_array(path: str, decompress: Any) -> bool:
    """Return whether the first non-blank character of a file is ``[``."""
    with open_stream(path, decompress) as (_, file):
        while start := read(file, 1 << 16, path).removeprefix(BYTE_ORDER_MARK):
            if start.strip():
                return start.lstrip().startswith(b"[")
    return False


def _array_blocks(path: str, decompress: Any, block_bytes: int, first: int) -> Iterator[Block]:
    """Yield the elements of a JSON array in blocks, starting at element ``first``."""
    with open_stream(path, decompress) as (disk, file):
        raw = read(file, -1, path)
        try:
            elements = json.loads(raw.removeprefix(BYTE_ORDER_MARK).decode())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not a JSON array ({error}); is the file complete?") from None
        share = disk.tell() / max(len(elements), 1)
    raw = (json.dumps(element).encode() for element in itertools.islice(elements, first - 1, None))
    yield from value_blocks(path, raw, block_bytes, share, first)
