"""Headers of the pages of a Parquet column chunk.

pyarrow does not report page headers. They are the only place that contains the checksum and the
number of values of a page. A header is a struct in Thrift's compact protocol: a byte with the
distance from the previous field id and the type, then the value, for each field; 0 ends a struct.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from llama_cpt.runtime.errors import UserError

# The header of a page contains the smallest and largest value of the page.
FIRST_READ_BYTES = 1 << 12
MAX_HEADER_BYTES = 16 << 20
MAX_DEPTH = 8
DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3

# Field ids of PageHeader in parquet.thrift, and of the header of each type of page.
_TYPE, _UNCOMPRESSED, _COMPRESSED, _CHECKSUM = 1, 2, 3, 4
_HEADERS = {DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}
# Type codes of the compact protocol.
_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, 12


class Page(NamedTuple):
    """The part of a page header that is needed to check a file."""

    is_dictionary: bool
    size: int
    """Size of the page in bytes after decompression."""
    values: int
    """Number of values, including nulls; 0 for a dictionary page."""
    has_checksum: bool


def read_pages(path: str, file: BinaryIO, chunk: Any) -> Iterator[Page]:
    """Yield the header of each page of a column chunk of the Parquet file ``file``.

    Raises UserError if the headers are damaged or do not fill the chunk.
    """
    position = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < position:
        position = chunk.dictionary_page_offset
    end = position + chunk.total_compressed_size
    while position < end:
        try:
            header, size = _read_header(file, position)
            body = header[_COMPRESSED]
            if body < 0 or header[_UNCOMPRESSED] < 0:
                raise ValueError("negative size")
            # Each type of page has its own header, whose first field is the number of values.
            kind, values = header[_TYPE], header[_HEADERS[header[_TYPE]]][1]
            is_dictionary = kind == DICTIONARY_PAGE
            yield Page(
                is_dictionary,
                header[_UNCOMPRESSED],
                0 if is_dictionary else values,
                _CHECKSUM in header,
            )
        except (ValueError, KeyError, TypeError, IndexError):
            position = -1
            break
        position += size + body
    if position != end:
        raise UserError(
            f"{path}: broken, the pages of a column do not match the footer; write or download the "
            "file again."
        )


def _read_header(file: BinaryIO, position: int) -> tuple[dict[int, Any], int]:
    """Return the fields of the page header at ``position``, and the size of the header."""
    size = FIRST_READ_BYTES
    while True:
        file.seek(position)
        raw = file.read(size)
        try:
            return _struct(raw, 0, 0)
        except IndexError:
            if len(raw) < size or size >= MAX_HEADER_BYTES:
                raise
        size *= 16


def _struct(raw: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the integers and structs of the struct at ``at``, by field id, and the next position.

    Raises IndexError if the struct extends beyond ``raw``, and ValueError if it is invalid.
    """
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    fields: dict[int, Any] = {}
    last = 0
    while raw[at]:
        step, kind = divmod(raw[at], 16)
        at += 1
        if not step:
            step, at = _integer(raw, at)
            step -= last
        last += step
        if kind in (_TRUE, _FALSE):
            continue
        if kind == _BYTE:
            at += 1
        elif kind in _INTEGERS:
            fields[last], at = _integer(raw, at)
        elif kind == _DOUBLE:
            at += 8
        elif kind == _BINARY:
            length, at = _unsigned(raw, at)
            at += length
        elif kind == _STRUCT:
            fields[last], at = _struct(raw, at, depth + 1)
        else:  # A page header contains no lists, sets or maps.
            raise ValueError(f"type {kind}")
    return fields, at + 1


def _integer(raw: bytes, at: int) -> tuple[int, int]:
    """Return the signed integer at ``at``, and the next position."""
    number, at = _unsigned(raw, at)
    return (number >> 1) ^ -(number & 1), at


def _unsigned(raw: bytes, at: int) -> tuple[int, int]:
    """Return the unsigned integer at ``at``, and the next position."""
    number = shift = 0
    while raw[at] & 0x80:
        number |= (raw[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise ValueError("integer too long")
    return number | raw[at] << shift, at + 1
