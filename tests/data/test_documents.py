"""Documents are the same for each kind of source; errors name the file and the line."""

import gzip
import json

import fsspec
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.data.sources import streams
from llama_cpt.data.sources.documents import (
    BadDocument,
    BlockStart,
    Document,
    parse_documents,
    read_blocks,
)
from llama_cpt.data.sources.files import (
    describe_changes,
    find_sources,
    storage_errors_as_user_errors,
    with_digests,
)
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import UnreachableError
from tests.data.corpus_files import COMPRESS

TEXTS = ["plain", "中文，两行\nand a 😀", "a literal <|eot_id|>", "x" * 300, " "] + ["y z"] * 600
LINES = "".join(json.dumps({"id": i, "text": t}) + "\r\n" for i, t in enumerate(TEXTS)).encode()


def corpus(source, field="text"):
    return CorpusConfig("zh", str(source), text_field=field)


def read(source, field="text", block_bytes=1000):
    blocks = read_blocks(find_sources(corpus(source, field)), field, block_bytes)
    return [document for block in blocks for document in parse_documents(block, field)]


def texts(documents):
    """Return the texts of the valid documents."""
    return [d.text for d in documents if isinstance(d, Document)]


def write_lines(path, content):
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(content))
    return path


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("block_bytes", [1, 1000, 1 << 20])
def test_json_lines(tmp_path, suffix, block_bytes):
    documents = read(write_lines(tmp_path / f"a.jsonl{suffix}", LINES), block_bytes=block_bytes)
    assert texts(documents) == [t for t in TEXTS if t.strip()]
    assert [d.number for d in documents] == list(range(1, len(TEXTS) + 1))
    sizes = [d.source_bytes for d in documents if isinstance(d, Document)]
    assert sizes[:2] == [5, len(TEXTS[1].encode())]
    assert str(documents[4]).endswith(f"a.jsonl{suffix}:5: empty text")


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b" "))),
    st.integers(1, 40),
    st.booleans(),
)
def test_blocks_are_all_lines_of_the_file(tmp_path_factory, lines, block_bytes, end):
    content = b"\n".join(lines) + (b"\n" if end else b"")
    path = write_lines(tmp_path_factory.mktemp("lines") / "a.jsonl", content)
    blocks = list(read_blocks(find_sources(corpus(path)), "text", block_bytes))
    raw = [block.raw for block in blocks if isinstance(block.raw, bytes)]
    assert len(raw) == len(blocks) and b"".join(raw) == content
    assert sum(block.disk_bytes for block in blocks) == len(content)
    for lines_before, before, block in zip(raw, blocks, blocks[1:], strict=False):
        assert lines_before.endswith(b"\n")
        assert block.first == before.first + lines_before.count(b"\n")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet(tmp_path, kind):
    table = pa.table({"n": list(range(len(TEXTS))), "text": pa.array(TEXTS, pa.string())})
    table = table.set_column(1, "text", table["text"].cast(kind))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    documents = read(tmp_path / "a.parquet")
    assert texts(documents) == [t for t in TEXTS if t.strip()]
    assert documents[-1].number == len(TEXTS)
    assert str(documents[4]).endswith("a.parquet:5: empty text")


def test_bad_values_of_a_parquet_column(tmp_path):
    binary = pa.array([b"good", b"\xff\xfe", None, b"too"], pa.binary())
    strings = pa.Array.from_buffers(pa.string(), 4, binary.buffers(), null_count=1)
    pq.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    documents = read(tmp_path / "a.parquet")
    assert texts(documents) == ["good", "too"]
    bad = [(n, d.reason) for n, d in enumerate(documents) if isinstance(d, BadDocument)]
    assert bad == [(1, "not UTF-8"), (2, "text is not a string")]


def test_text_files_are_documents(tmp_path):
    write_lines(tmp_path / "b.txt.gz", "zwei\n\nAbsätze".encode())
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbf# one")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    documents = read(tmp_path / "*.*")
    assert texts(documents) == ["# one", "zwei\n\nAbsätze"]
    assert str(documents[2]) == f"{tmp_path}/c.txt: not UTF-8 (invalid start byte)"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "\xff"}', "not UTF-8 (invalid start byte)"),
        (b'{"text": "\\ud800"}', "not UTF-8 (a lone surrogate)"),
        (b'{"text": "cut', "not JSON (Unterminated string starting at: line 1 column 10 (char 9))"),
        (b"[" * 100_000, "not JSON ("),
        (b'[{"text": "array"}]', "not a JSON object (expected one object per line, not a list)"),
        (b'{"body": "b", "title": 1}', "no field 'text' (its fields: body, title)"),
        (b"{}", "no field 'text' (its fields: none)"),
        (b'{"text": null}', "text is not a string (it is of type NoneType)"),
        (b'{"text": ["b"]}', "text is not a string (it is of type list)"),
        (b'{"text": ""}', "empty text"),
    ],
)
def test_bad_line_is_named(tmp_path, line, message):
    content = b'\xef\xbb\xbf{"text": "before"}\n\n' + line + b'\n{"text": "after"}'
    before, bad, after = read(write_lines(tmp_path / "a.jsonl", content))
    assert str(bad).startswith(f"{tmp_path}/a.jsonl:3: {message}")
    assert texts([before, after]) == ["before", "after"] and after.number == 4


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_truncated_file_is_an_error(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 1 << 62, 5000)
    content = "".join(json.dumps({"text": str(n)}) + "\n" for n in noise).encode()
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](content)[:-100])
    with pytest.raises(UserError, match=rf"a.jsonl{suffix}: .*is the file complete\?"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_concatenated_streams(tmp_path, suffix):
    path = tmp_path / f"a.jsonl{suffix}"
    first, second = (
        "".join(json.dumps({"text": f"{n} {k}"}) + "\n" for n in range(9)).encode() for k in "ab"
    )
    whole = COMPRESS[suffix](first) + COMPRESS[suffix](b"") + COMPRESS[suffix](second)
    padding = bytes(512) if suffix == ".gz" else bytes(8) if suffix == ".xz" else b""
    path.write_bytes(whole + padding)
    assert texts(read(path, block_bytes=50)) == [f"{n} {k}" for k in "ab" for n in range(9)]
    second = COMPRESS[suffix](second)
    for damaged in (b"?" + second, second[:-9]):
        path.write_bytes(COMPRESS[suffix](first) + damaged)
        with pytest.raises(UserError, match=rf"a.jsonl{suffix}: broken after line"):
            read(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none-*.jsonl", "corpus 'zh': no file matches .*none-"),
        ("", "is a folder; set a file pattern"),
        ("a.csv", r"a.csv: unknown format; documents must be .jsonl"),
        ("a.parquet", "a.parquet: not a Parquet file"),
        ("a.jsonl.gz", "a.jsonl.gz: broken after line 1 .*Not a gzipped file"),
    ],
)
def test_unreadable_source_is_an_error(tmp_path, name, message):
    for broken in ("a.csv", "a.parquet", "a.jsonl.gz"):
        (tmp_path / broken).write_bytes(b"what is this?")
    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("offset", range(4, 4000, 97))
def test_damaged_parquet_file_is_a_one_line_error(tmp_path, offset):
    """Damage at any offset gives different documents or an error that is not transient."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"number {n} of many" for n in range(400)]}), path)
    content = bytearray(path.read_bytes())
    content[offset % len(content) : offset % len(content) + 40] = bytes(range(200, 240))
    path.write_bytes(content)
    try:
        read(path)
    except UserError as error:
        assert not isinstance(error, UnreachableError)
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


def test_transient_read_error_is_unreachable():
    """A mounted bucket that does not answer gives EIO, as does /proc/self/mem at address 0."""
    message = "a.jsonl: cannot be read now .*Input/output"
    with open("/proc/self/mem", "rb") as failing:
        with pytest.raises(UnreachableError, match=message):
            streams.read(failing, 9, "a.jsonl", " after line 3")
        with (
            pytest.raises(UnreachableError, match=message),
            storage_errors_as_user_errors("a.jsonl"),
        ):
            failing.read(9)


def test_missing_or_numeric_parquet_column_is_an_error(tmp_path):
    pq.write_table(pa.table({"id": [1], "body": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'text'; its columns: id, body"):
        read(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="column 'id' holds int64, not strings"):
        read(tmp_path / "a.parquet", "id")
    assert texts(read(tmp_path / "a.parquet", "body")) == ["b"]


def test_document_of_50_megabytes(tmp_path):
    text = "大文件 large " * (50_000_000 // 16)
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in ("a", text, "b")]
    path = write_lines(tmp_path / "a.jsonl", "\n".join(lines).encode())
    documents = read(path, block_bytes=2 << 20)
    assert texts(documents) == ["a", text, "b"]
    assert [d.number for d in documents] == [1, 2, 3]


def test_remote_source(tmp_path):
    system = fsspec.filesystem("memory")
    for name, content in (("b", LINES), ("a", b'{"text": "first"}\n')):
        with system.open(f"/bucket/{name}.jsonl.gz", "wb") as file:
            file.write(gzip.compress(content))
    sources = find_sources(corpus("memory://bucket/*.jsonl.gz"))
    assert [path.rsplit("/", 1)[1] for path in sources.files] == ["a.jsonl.gz", "b.jsonl.gz"]
    assert texts(read("memory://bucket/*.jsonl.gz")) == ["first"] + [t for t in TEXTS if t.strip()]
    assert len(with_digests("zh", sources.stats())[0]["digest"]) == 64
    with pytest.raises(UserError, match="nonesuch://x: cannot be read"):
        find_sources(corpus("nonesuch://x"))


def test_existing_remote_source_is_read_literally():
    system = fsspec.filesystem("memory")
    for name in ("t [1].jsonl", "t 1.jsonl"):
        with system.open(f"/literal/{name}", "wb") as file:
            file.write(json.dumps({"text": name}).encode())
    assert texts(read("memory://literal/t [1].jsonl")) == ["t [1].jsonl"]
    assert texts(read("memory://literal/t ?.jsonl")) == ["t 1.jsonl"]


def test_changes_of_the_sources_are_detected(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", LINES)
    sources = find_sources(corpus(path))
    before = with_digests("zh", sources.stats())
    assert describe_changes(sources.stats(), before) is None
    path.touch()
    assert describe_changes(sources.stats(), before) is None
    path.write_bytes(LINES[:-3] + b" \r\n")
    assert describe_changes(sources.stats(), before) == f"source {path} has changed"
    write_lines(tmp_path / "b.jsonl", LINES)
    both = find_sources(corpus(tmp_path / "*.jsonl"))
    assert describe_changes(both.stats(), before) == "there are 2 source files, there were 1"
    (tmp_path / "elsewhere").mkdir()
    moved = write_lines(tmp_path / "elsewhere" / "a.jsonl", LINES)
    assert describe_changes(find_sources(corpus(moved)).stats(), before) is None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A TFDS dataset with two splits, written as ArrayRecord without TensorFlow."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")

    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "id": tfds.features.Scalar(np.int64)}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, description="texts")

        def _split_generators(self, _):
            return {"train": self._generate_examples(600), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            yield from ((i, {"text": f"文 number {i}", "id": i}) for i in range(count))

    TinyTexts(data_dir=folder, file_format="array_record").download_and_prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(folder))
        yield folder


def test_tfds_dataset(dataset):
    documents = read("tfds:tiny_texts")
    sources = find_sources(corpus("tfds:tiny_texts"))
    blocks = list(read_blocks(sources, "text", 300))
    assert list(read_blocks(sources, "text", 300, BlockStart(first=blocks[1].first))) == blocks[1:]
    assert sorted(texts(documents)) == sorted(f"文 number {i}" for i in range(600))
    assert [d.number for d in documents] == list(range(1, 601))
    assert texts(read("tfds:tiny_texts:1.2.0:train[:10]")) == texts(documents)[:10]
    assert len(read("tfds:tiny_texts:test")) == 3
    assert [source["bytes"] > 0 for source in with_digests("zh", sources.stats())] == [True]
    assert {str(d).split(": ")[1] for d in read("tfds:tiny_texts:test", "id")} == {
        "text is not a string (it is of type int)"
    }


@pytest.mark.parametrize(
    ("source", "field", "message"),
    [
        ("tfds:nonesuch", "text", "tfds:nonesuch: Dataset nonesuch not found.*tfds build"),
        ("tfds:tiny_texts:valid", "text", "Unknown split 'valid'"),
        ("tfds:tiny_texts", "body", r"no field 'body'; its fields: (id, text|text, id)"),
    ],
)
def test_invalid_tfds_names_are_errors(dataset, source, field, message):
    with pytest.raises(UserError, match=message):
        read(source, field)
