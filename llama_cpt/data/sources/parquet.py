"""Columns of strings in Parquet files, with verified page checksums and row counts."""

from collections.abc import Iterator
import os
from typing import Any, BinaryIO

from llama_cpt.data.sources.blocks import MAX_DOCUMENT_BYTES, Block, TooLarge, value_blocks
from llama_cpt.data.sources.parquet_pages import Page, read_pages
from llama_cpt.data.sources.streams import check_expansion, decoding_errors
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import open_for_reading

PARQUET = (".parquet",)
# Bounds of the values that are decoded together.
BATCH_ROWS = 256
BATCH_BYTES = 16 << 20


def parquet_blocks(path: str, field: str, block_bytes: int, first: int) -> Iterator[Block]:
    """Yield the values of column ``field`` in blocks, starting at row ``first``.

    The values are bytes. Raises UserError if ``field`` is not one column of strings, or if the file
    is damaged: if a page does not match its checksum, or the pages have more or fewer rows than the
    footer states. Files without checksums are read as well (``has_checksums``).
    """
    import pyarrow  # Imported here, because the import is slow and only Parquet needs it.

    with open_for_reading(path) as file, decoding_errors(path, "", pyarrow.ArrowException):
        table, column = _open_column(path, file, field)
        rows = table.metadata.num_rows
        groups = [table.metadata.row_group(n) for n in range(table.num_row_groups)]
        file_bytes = file.seek(0, os.SEEK_END)
        share = file_bytes / max(rows, 1)
        check_expansion(path, file_bytes, sum(group.total_byte_size for group in groups))
        if sum(group.num_rows for group in groups) != rows:
            raise _wrong_rows(path, f"the footer states {rows:,} rows, its row groups do not")
        values = _bounded(path, file_bytes, _values(path, file, table, column, first))
        yield from value_blocks(path, values, block_bytes, share, first)


def _bounded(path: str, file_bytes: int, values: Iterator[Any]) -> Iterator[Any]:
    """Yield ``values``; raise UserError if they are too large for a file of ``file_bytes``.

    The sizes in the footer do not limit the decoded size, because each row can repeat a value of a
    dictionary.
    """
    total = 0
    for value in values:
        total += value.size if isinstance(value, TooLarge) else len(value or b"")
        check_expansion(path, file_bytes, total)
        yield value


def has_checksums(path: str, field: str) -> bool:
    """Return whether the pages of column ``field`` have checksums, judging by the first page.

    A file without rows counts as a file with checksums.
    """
    import pyarrow

    with open_for_reading(path) as file, decoding_errors(path, "", pyarrow.ArrowException):
        table, column = _open_column(path, file, field)
        groups = range(table.num_row_groups)
        # A group without rows need not have a data page.
        group = next((n for n in groups if table.metadata.row_group(n).num_rows), None)
        if group is None:
            return True
        pages = read_pages(path, file, _column_chunk(table, group, column))
        return next((page.has_checksum for page in pages), True)


def _open_column(path: str, file: BinaryIO, field: str) -> tuple[Any, int]:
    """Return the open Parquet file, and the index of the column ``field``."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
        schema = table.schema_arrow
    except pyarrow.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a Parquet file ({reason}); is it complete?") from None
    count = schema.names.count(field)
    if not count:
        columns = ", ".join(schema.names)
        raise UserError(
            f"{path}: no column {field!r}; its columns: {columns}. Set text_field to one of them."
        )
    if count > 1:
        raise UserError(
            f"{path}: {count} columns are named {field!r}; rename all but one of them, or set "
            "text_field to a different column."
        )
    kind = _storage_type(schema.field(field).type)
    if not _is_text(kind):
        raise UserError(
            f"{path}: column {field!r} holds {kind}, not strings; set text_field to a column of "
            "strings."
        )
    leaves = [table.schema.column(n) for n in range(len(table.schema))]
    # A top-level column a.b and a field b of a struct a have the same path.
    found = [n for n, leaf in enumerate(leaves) if leaf.path == field]
    if len(found) != 1:
        raise UserError(
            f"{path}: column {field!r} and a field of another column share a name; rename one."
        )
    return table, found[0]


def _storage_type(kind: Any) -> Any:
    """Return the type of the values of a dictionary or extension type, or ``kind`` itself."""
    import pyarrow

    while True:
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pyarrow.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def _is_text(kind: Any) -> bool:
    """Return whether ``kind`` is a type of strings or bytes of any length."""
    from pyarrow import types

    return any(
        is_kind(kind)
        for is_kind in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
        )
    )


def _values(path: str, file: BinaryIO, table: Any, column: int, first: int) -> Iterator[Any]:
    """Yield the values of a column as bytes or None, starting at row ``first``."""
    skipped = first - 1
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        if skipped >= group.num_rows:
            skipped -= group.num_rows
            continue
        chunk = _column_chunk(table, number, column)
        check_expansion(path, chunk.total_compressed_size, chunk.total_uncompressed_size)
        largest = _check_pages(path, file, chunk, group.num_rows)
        batch_rows = min(BATCH_ROWS, max(1, BATCH_BYTES // largest))
        count = 0
        for count, value in enumerate(_group_values(table, number, column, batch_rows), 1):
            if count > skipped:
                yield value
        if count != group.num_rows:
            raise _wrong_rows(path, f"{group.num_rows:,} rows are expected, {count:,} were read")
        skipped = 0


def _column_chunk(table: Any, group: int, column: int) -> Any:
    """Return the metadata of a column in a row group."""
    # If the metadata is damaged, RowGroupMetaData.column can abort the process. The reader raises
    # an error in this case, so one row is read first.
    name = table.schema.column(column).name
    next(table.iter_batches(1, row_groups=[group], columns=[name]), None)
    return table.metadata.row_group(group).column(column)


def _check_pages(path: str, file: BinaryIO, chunk: Any, rows: int) -> int:
    """Return an estimate of the largest value of a column chunk, in bytes.

    Raises UserError if the chunk's pages do not contain ``rows`` values, as the footer states.
    """
    values, largest = 0, 1
    for page in read_pages(path, file, chunk):
        values += page.values
        # The values of a dictionary page can each occur in every row.
        largest = max(largest, page.size // _values_per_size(page))
    if not values == chunk.num_values == rows:
        raise _wrong_rows(
            path,
            f"its footer states {rows:,} rows and {chunk.num_values:,} values, its pages have "
            f"{values:,}",
        )
    return largest


def _values_per_size(page: Page) -> int:
    """Return the divisor that turns the bytes of a page into an estimate per value."""
    return 1 if page.is_dictionary else max(page.values, 1)


def _wrong_rows(path: str, detail: str) -> UserError:
    return UserError(f"{path}: broken, {detail}; write or download the file again.")


def _group_values(table: Any, group: int, column: int, batch_rows: int) -> Iterator[Any]:
    """Yield the values of a column in a row group as bytes or None."""
    import pyarrow
    import pyarrow.compute

    name = table.schema.column(column).name
    for batch in table.iter_batches(batch_rows, row_groups=[group], columns=[name]):
        array = batch.column(batch.schema.get_field_index(name))
        if isinstance(array, pyarrow.ExtensionArray):
            array = array.storage
        if isinstance(array, pyarrow.DictionaryArray):
            array = array.dictionary_decode()
        # Values are read as bytes, so that invalid UTF-8 is one bad document and not a bad file.
        array = array.cast(pyarrow.large_binary())
        sizes = [
            size or 0
            for size in pyarrow.compute.call_function("binary_length", [array]).to_pylist()
        ]
        if max(sizes) <= MAX_DOCUMENT_BYTES:
            yield from array.to_pylist()
            continue
        for value, size in zip(array, sizes, strict=True):
            yield TooLarge(size) if size > MAX_DOCUMENT_BYTES else value.as_py()
