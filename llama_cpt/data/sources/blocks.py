"""Blocks of consecutive raw documents of a file, with a bound on the size of a document."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from llama_cpt.data.sources.files import Sources
from llama_cpt.data.sources.json_arrays import split_array
from llama_cpt.data.sources.streams import open_stream, read, skip

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_DOCUMENT_BYTES = 64 << 20
"""Maximum size in bytes of the line, array element, file or value that contains a document. The
encoding of a document takes up to 20 times its size, so the bound limits the memory of
``prepare``."""

_ARRAY_CHUNK_BYTES = 1 << 20


class TooLarge(NamedTuple):
    """A placeholder for a document of more than MAX_DOCUMENT_BYTES, which is not kept."""

    size: int
    """Size of the document in bytes, or a lower bound."""


@dataclass(frozen=True)
class Block:
    """Consecutive raw documents of one file, which are read as a unit."""

    path: str
    first: int
    """Line, row or array element of the first document, from 1; 0 if the file is one document."""
    raw: bytes | list[Any]
    """Whole lines of JSON Lines, or a list of values, which are bytes or str if they are valid, or
    tuples of such values for a template. A value that is too large is a ``TooLarge``."""
    size: int
    """Size of ``raw`` in bytes."""
    disk_bytes: float
    """Number of bytes that the block takes in the file, which can be compressed."""
    is_json: bool = False
    """True if the values in the list ``raw`` are JSON texts, as for the elements of an array."""


@dataclass(frozen=True)
class BlockStart:
    """The position at which a block starts.

    Reading from this position yields the same blocks as reading from the start of the sources.
    """

    file: int = 0
    """Index of the file in ``Sources.files``; 0 for a TFDS dataset."""
    first: int = 1
    """Line, row or array element of the first document, as in ``Block``."""
    offset: int = 0
    """Number of decompressed bytes of the file before the block, used for files of lines."""


FIRST_BLOCK = BlockStart()


def files_from(sources: Sources, start: BlockStart) -> Iterator[tuple[str, BlockStart]]:
    """Yield the path of each file to read, and the position at which to start reading the file.

    ``start`` determines the first file and the position in this file.
    """
    for number, path in enumerate(sources.files[start.file :], start.file):
        yield path, start if number == start.file else BlockStart(number)


def bounded(value: Any) -> Any:
    """Return ``value``, or a TooLarge if it is text of more than MAX_DOCUMENT_BYTES."""
    if isinstance(value, bytes | str) and len(value) > MAX_DOCUMENT_BYTES:
        return TooLarge(len(value))
    return value


def line_blocks(
    path: str, decompress: Any, block_bytes: int, start: BlockStart = FIRST_BLOCK
) -> Iterator[Block]:
    """Yield the lines of a file in blocks of whole lines, of about ``block_bytes`` bytes each.

    A line that is too large becomes a block with a TooLarge. The line is not kept in memory.
    """
    line, held, dropped = start.first, [], 0
    with open_stream(path, decompress) as (disk, file):
        skip(disk, file, start.offset, path)
        at = disk.tell() if start.offset else 0
        # The first read ends at a multiple of block_bytes, so that the blocks are the same as when
        # the file is read from its start.
        size = block_bytes - start.offset % block_bytes
        while chunk := read(file, size, path, f" after line {line}"):
            size = block_bytes
            if not dropped and sum(map(len, held)) > MAX_DOCUMENT_BYTES:
                dropped, held = sum(map(len, held)), []
            if dropped:
                end = chunk.find(b"\n") + 1
                dropped += end or len(chunk)
                if not end:
                    continue
                yield Block(path, line, [TooLarge(dropped)], dropped, float(disk.tell() - at))
                line, at, dropped, chunk = line + 1, disk.tell(), 0, chunk[end:]
            cut = chunk.rfind(b"\n") + 1
            if not cut:
                held.append(chunk)
                continue
            raw = b"".join([*held, chunk[:cut]])
            held = [chunk[cut:]]
            yield Block(path, line, raw, len(raw), float(disk.tell() - at))
            line, at = line + raw.count(b"\n"), disk.tell()
        raw = [TooLarge(dropped)] if dropped else b"".join(held)
        if raw:
            yield Block(path, line, raw, dropped or len(raw), float(disk.tell() - at))


def is_array(path: str, decompress: Any) -> bool:
    """Return whether the first non-blank character of a file is ``[``."""
    with open_stream(path, decompress) as (_, file):
        while start := read(file, 1 << 16, path).removeprefix(BYTE_ORDER_MARK):
            if start.strip():
                return start.lstrip().startswith(b"[")
    return False


def array_blocks(path: str, decompress: Any, block_bytes: int, first: int) -> Iterator[Block]:
    """Yield the elements of a JSON array as JSON texts in blocks, starting at element ``first``."""
    held, size = [], 0
    with open_stream(path, decompress) as (disk, file):
        chunks = iter(lambda: read(file, _ARRAY_CHUNK_BYTES, path, " in a JSON array"), b"")
        at = 0
        for number, element in enumerate(split_array(path, chunks, MAX_DOCUMENT_BYTES), 1):
            if number < first:
                continue
            held.append(TooLarge(element) if isinstance(element, int) else element)
            size += element if isinstance(element, int) else len(element)
            if size >= block_bytes:
                yield Block(path, first, held, size, float(disk.tell() - at), is_json=True)
                first, held, size, at = first + len(held), [], 0, disk.tell()
        if held:
            yield Block(path, first, held, size, float(disk.tell() - at), is_json=True)


def value_blocks(
    path: str, values: Iterator[Any], block_bytes: int, disk_bytes: float, first: int = 1
) -> Iterator[Block]:
    """Yield ``values`` in blocks of about ``block_bytes`` bytes.

    ``first`` is the row of the first value. Each value takes ``disk_bytes`` bytes on disk.
    """
    held, size = [], 0
    for value in values:
        held.append(bounded(value))
        parts = value if isinstance(value, tuple) else (value,)
        size += sum(len(part) for part in parts if isinstance(part, bytes | str))
        if size >= block_bytes:
            yield Block(path, first, held, size, disk_bytes * len(held))
            first, held, size = first + len(held), [], 0
    if held:
        yield Block(path, first, held, size, disk_bytes * len(held))
