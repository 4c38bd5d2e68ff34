"""Records in JSON Lines files and in JSON files that contain one array, with their positions."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from llama_cpt.data.sources.blocks import (
    FIRST_BLOCK,
    Block,
    BlockStart,
    array_blocks,
    files_from,
    is_array,
    line_blocks,
)
from llama_cpt.data.sources.documents import LINES, BadDocument, json_object, json_texts
from llama_cpt.data.sources.files import Sources, storage_errors_as_user_errors
from llama_cpt.data.sources.streams import split_compression
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
            if is_array(path, decompress):
                yield from array_blocks(path, decompress, block_bytes, begin.first)
            else:
                yield from line_blocks(path, decompress, block_bytes, begin)


def parse_records(block: Block) -> Iterator[Record | BadDocument]:
    """Yield the records in ``block``; blank lines are skipped."""
    for number, raw in json_texts(block):
        values = json_object(block.path, number, raw, expected="a record is not a")
        yield values if isinstance(values, BadDocument) else Record(block.path, number, values)
