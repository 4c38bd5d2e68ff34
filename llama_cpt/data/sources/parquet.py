"""Columns of strings in Parquet files, with verified page checksums and row counts."""

from collections.abc import Generator, Iterator
import contextlib
import os
from typing import Any, BinaryIO, NamedTuple, cast

from llama_cpt.data.sources.blocks import MAX_DOCUMENT_BYTES, Block, TooLarge, value_blocks
from llama_cpt.data.sources.parquet_pages import Page, read_pages
from llama_cpt.data.sources.streams import check_expansion, decoding_errors
from llama_cpt.data.sources.text_fields import Template, find_template
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import open_for_reading

PARQUET = (".parquet",)
# Bounds of the values that are decoded together.
BATCH_ROWS = 256
BATCH_BYTES = 16 << 20


def parquet_blocks(path: str, text_field: str, block_bytes: int, first: int) -> Iterator[Block]:
    """Yield the values of the column ``text_field`` in blocks, starting at row ``first``.

    The values are bytes. For a template, a value is a tuple of the values of the template's
    columns. Raises UserError if a column is not one column of strings, or if the file is damaged:
    if a page does not match its checksum, or the pages have more or fewer rows than the footer
    states. Files without checksums are read as well (``has_checksums``).
    """
    import pyarrow  # Imported here, because the import is slow and only Parquet needs it.

    with (
        _open_columns(path, text_field) as files,
        decoding_errors(path, "", pyarrow.ArrowException),
    ):
        template, columns = _find_columns(path, files, text_field)
        metadata, file = columns[0].table.metadata, columns[0].file
        rows = metadata.num_rows
        groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
        file_bytes = file.seek(0, os.SEEK_END)
        share = file_bytes / max(rows, 1)
        check_expansion(path, file_bytes, sum(group.total_byte_size for group in groups))
        if sum(group.num_rows for group in groups) != rows:
            raise _wrong_rows(path, f"the footer states {rows:,} rows, its row groups do not")
        values = [_bounded(path, file_bytes, _values(path, column, first)) for column in columns]
        records = zip(*values, strict=True) if template else values[0]
        yield from value_blocks(path, records, block_bytes, share, first)


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


def has_checksums(path: str, text_field: str) -> bool:
    """Return whether the pages of the columns of ``text_field`` have checksums.

    Only the first page of a column is examined. A file without rows counts as a file with
    checksums.
    """
    import pyarrow

    with (
        _open_columns(path, text_field) as files,
        decoding_errors(path, "", pyarrow.ArrowException),
    ):
        _, columns = _find_columns(path, files, text_field)
        return all(_has_checksums(path, column) for column in columns)


def _has_checksums(path: str, column: "_Column") -> bool:
    table = column.table
    groups = range(table.num_row_groups)
    # A group without rows need not have a data page.
    group = next((n for n in groups if table.metadata.row_group(n).num_rows), None)
    if group is None:
        return True
    pages = read_pages(path, column.file, _column_chunk(column, group))
    return next((page.has_checksum for page in pages), True)


class _Column(NamedTuple):
    """A column of strings in an open file."""

    file: BinaryIO
    table: Any
    """The file as a ``pyarrow.parquet.ParquetFile``."""
    parts: tuple[str, ...]
    """The name of the column, followed by the names of nested fields."""
    index: int
    """Index of the column among all columns without nested fields."""

    @property
    def name(self) -> str:
        """The name by which pyarrow selects the column."""
        return ".".join(self.parts)


@contextlib.contextmanager
def _open_columns(path: str, text_field: str) -> Generator[list[BinaryIO]]:
    """Context manager that opens the file once per column, because columns are read in turns."""
    template = find_template(text_field)
    with contextlib.ExitStack() as opened:
        names = template.names if template else (text_field,)
        yield [opened.enter_context(open_for_reading(path)) for _ in names]


def _find_columns(
    path: str, files: list[BinaryIO], text_field: str
) -> tuple[Template | None, list[_Column]]:
    """Return the template ``text_field``, or None, and the columns of its fields."""
    first = _open_table(path, files[0])
    template = None
    if text_field not in first.schema_arrow.names:
        template = find_template(text_field)
    if template is None:
        return None, [_find_column(path, files[0], first, text_field)]
    tables = [first, *(_open_table(path, file) for file in files[1:])]
    opened = zip(files, tables, template.names, strict=True)
    return template, [_find_column(path, *one) for one in opened]


def _open_table(path: str, file: BinaryIO) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
        _ = table.schema_arrow
    except pyarrow.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a Parquet file ({reason}); is it complete?") from None
    return table


def _find_column(path: str, file: BinaryIO, table: Any, field: str) -> _Column:
    """Return the column ``field``; dots in ``field`` can separate the names of nested fields."""
    schema = table.schema_arrow
    parts = (field,) if field in schema.names else tuple(field.split("."))
    kind = _nested_type(path, schema, parts, field)
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
    return _Column(file, table, parts, found[0])


def _nested_type(path: str, schema: Any, parts: tuple[str, ...], field: str) -> Any:
    """Return the type of the values of a column or a nested field.

    Raises UserError if the column does not exist or if several columns have its name.
    """
    import pyarrow

    kind, names = schema, schema.names
    for part in parts:
        if not (count := names.count(part)):
            columns = ", ".join(schema.names)
            raise UserError(
                f"{path}: no column {field!r}; its columns: {columns}. Set text_field to one of "
                "them."
            )
        if count > 1:
            raise UserError(
                f"{path}: {count} columns are named {field!r}; rename all but one of them, or set "
                "text_field to a different column."
            )
        kind = _storage_type(kind.field(part).type)
        is_struct = pyarrow.types.is_struct(kind)
        names = [kind.field(n).name for n in range(kind.num_fields)] if is_struct else []
    return kind


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


def _values(path: str, column: _Column, first: int) -> Iterator[Any]:
    """Yield the values of a column as bytes or None, starting at row ``first``."""
    table, skipped = column.table, first - 1
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        if skipped >= group.num_rows:
            skipped -= group.num_rows
            continue
        chunk = _column_chunk(column, number)
        check_expansion(path, chunk.total_compressed_size, chunk.total_uncompressed_size)
        largest = _check_pages(path, column.file, chunk, group.num_rows)
        batch_rows = min(BATCH_ROWS, max(1, BATCH_BYTES // largest))
        count = 0
        for count, value in enumerate(_group_values(column, number, batch_rows), 1):
            if count > skipped:
                yield value
        if count != group.num_rows:
            raise _wrong_rows(path, f"{group.num_rows:,} rows are expected, {count:,} were read")
        skipped = 0


def _column_chunk(column: _Column, group: int) -> Any:
    """Return the metadata of a column in a row group."""
    # If the metadata is damaged, RowGroupMetaData.column can abort the process. The reader raises
    # an error in this case, so one row is read first.
    next(column.table.iter_batches(1, row_groups=[group], columns=[column.name]), None)
    return column.table.metadata.row_group(group).column(column.index)


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


def _group_values(column: _Column, group: int, batch_rows: int) -> Iterator[Any]:
    """Yield the values of a column in a row group as bytes or None."""
    import pyarrow
    import pyarrow.compute

    batches = column.table.iter_batches(batch_rows, row_groups=[group], columns=[column.name])
    for batch in batches:
        array = batch.column(batch.schema.get_field_index(column.parts[0]))
        for part in column.parts[1:]:
            # A value is null if the struct that contains it is null.
            array = cast(Any, pyarrow.compute).struct_field(array, [part])
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
