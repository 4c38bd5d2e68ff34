"""Text of Parquet files of any string type; damage is an error."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.sources import blocks
from llama_cpt.data.sources.documents import (
    BadDocument,
    BlockStart,
    Document,
    files_without_checksums,
    parse_documents,
    read_blocks,
)
from llama_cpt.data.sources.files import find_sources
from llama_cpt.data.sources.parquet_pages import read_pages
from llama_cpt.runtime.errors import UserError

TEXTS = [f"number {n} of many " + "x" * (n % 50) for n in range(400)]


def read(path, field="text"):
    sources = find_sources(CorpusConfig("zh", str(path), text_field=field))
    found = [d for b in read_blocks(sources, field, 1000) for d in parse_documents(b, field)]
    return [d.text if isinstance(d, Document) else d.reason for d in found]


@pytest.mark.parametrize(
    "kind",
    [pa.string_view(), pa.binary_view(), pa.large_binary(), pa.json_()]
    + [pa.dictionary(pa.int8(), kind) for kind in (pa.binary(), pa.string())],
)
def test_column_of_any_string_type(tmp_path, kind):
    values = pa.array(["one", "中文", None, "one"], pa.string())
    is_extension = isinstance(kind, pa.BaseExtensionType)
    cast = pa.ExtensionArray.from_storage(kind, values) if is_extension else values.cast(kind)
    pq.write_table(pa.table({"text": cast}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["one", "中文", "text is not a string", "one"]


@pytest.mark.parametrize(
    "options",
    [
        {"data_page_size": 700},
        {"data_page_version": "2.0", "compression": "zstd"},
        {"row_group_size": 30, "use_dictionary": False},
        {"write_page_index": True, "compression": "none"},
    ],
)
def test_files_without_checksums_are_listed(tmp_path, options):
    table = pa.table({"n": [0] * 400, "text": TEXTS, "l": [["a", "b"]] * 400})
    for name, checksum in (("a", True), ("b", False)):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path, write_page_checksum=checksum, **options)
        assert read(path) == TEXTS
    sources = find_sources(CorpusConfig("zh", str(tmp_path / "*.parquet")))
    assert files_without_checksums(sources, "text") == [str(tmp_path / "b.parquet")]
    every = list(read_blocks(sources, "text", 1000))
    start = BlockStart(1, every[-1].first)
    assert list(read_blocks(sources, "text", 1000, start)) == every[-1:]


def test_manifest_lists_files_without_checksums(tmp_path, vocabulary):
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, write_page_checksum=False)
    config = DataConfig(
        tokenizer=str(vocabulary),
        prepared=str(tmp_path / "rows"),
        sequence_length=16,
        almr=1.0,
        additional=(CorpusConfig("zh", str(path)),),
    )
    assert prepare(config, 1).rows["zh"].without_checksums == [str(path)]


def test_flipped_bits_never_change_the_text(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, write_page_checksum=True, data_page_size=700)
    content, rng, errors = path.read_bytes(), random.Random(2), 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert read(path) == TEXTS
        except UserError as error:
            errors += 1
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert errors > 100


def footer_with_fewer_rows(content, rows, fewer):
    """Return a Parquet file whose footer states ``fewer`` rows everywhere."""
    size = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - size : -8]

    def varint(number):
        return bytes([2 * number & 0x7F | 0x80, 2 * number >> 7])

    assert footer.count(varint(rows)) >= 3
    return content[: -8 - size] + footer.replace(varint(rows), varint(fewer)) + content[-8:]


def test_footer_with_fewer_rows_than_its_pages(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, write_statistics=False, store_schema=False)
    path.write_bytes(footer_with_fewer_rows(path.read_bytes(), 400, 300))
    assert pq.read_metadata(path).num_rows == 300
    with pytest.raises(UserError, match="footer states 300 rows and 300 values.* have 400"):
        read(path)


def test_pages_that_do_not_fill_their_chunk(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, data_page_size=700)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    with path.open("rb") as file:
        pages = list(read_pages(str(path), file, chunk))
    assert sum(page.values for page in pages) == 400 and pages[0].is_dictionary
    content = bytearray(path.read_bytes())
    content[chunk.dictionary_page_offset] = 0xFF
    path.write_bytes(content)
    with path.open("rb") as file, pytest.raises(UserError, match="do not match the footer"):
        list(read_pages(str(path), file, chunk))


def test_ambiguous_columns_are_errors(tmp_path):
    path = tmp_path / "a.parquet"
    arrays = [pa.array(["x"]), pa.array(["y"])]
    pq.write_table(pa.Table.from_arrays(arrays, ["text", "text"]), path)
    with pytest.raises(UserError, match="2 columns are named 'text'; rename all but one"):
        read(path)
    pq.write_table(pa.table({"a": [{"b": "inner"}], "a.b": ["outer"]}), path)
    with pytest.raises(UserError, match="column 'a.b' and a field of another column"):
        read(path, "a.b")
    pq.write_table(pa.table({"a": [{"c": "inner"}], "a.b": ["outer"]}), path)
    assert read(path, "a.b") == ["outer"]


def test_large_values_are_bad_and_bombs_are_errors(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["y" * 2000, "z" * 60, None]}), path)
    monkeypatch.setattr("llama_cpt.data.sources.parquet.MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(blocks, "MAX_DOCUMENT_BYTES", 1000)
    large = "larger than 64 MiB"
    assert read(path) == [large, "z" * 60, "text is not a string"]
    monkeypatch.setattr("llama_cpt.data.sources.streams.BOMB_BYTES", 1000)
    pq.write_table(pa.table({"text": ["\0" * 5_000_000]}), path, compression="zstd")
    with pytest.raises(UserError, match=r"decompress to 5,000,\d+ or more"):
        read(path)
    shown = f"p:3: r (a\\x1b[31m{'b' * 294}...)"
    assert str(BadDocument("p", 3, "r", "a\x1b[31m" + "b" * 999)) == shown


def test_repeated_large_values_are_a_bomb(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["y" * 1000] * 9000}), path)
    monkeypatch.setattr("llama_cpt.data.sources.streams.BOMB_BYTES", 100_000)
    with pytest.raises(UserError, match="bytes decompress to"):
        read(path)


def test_row_groups_without_rows(tmp_path):
    table = pa.table({"text": TEXTS})
    for checksum in (True, False):
        path = tmp_path / f"{checksum}.parquet"
        with pq.ParquetWriter(path, table.schema, write_page_checksum=checksum) as writer:
            for part in (table.slice(0, 0), table, table.slice(0, 0)):
                writer.write_table(part)
        assert read(path) == TEXTS
    sources = find_sources(CorpusConfig("zh", str(tmp_path / "*.parquet")))
    assert files_without_checksums(sources, "text") == [str(tmp_path / "False.parquet")]
