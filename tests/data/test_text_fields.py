"""Texts from nested fields and from templates of several fields, in all kinds of records."""

from dataclasses import replace
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.sources import blocks, documents
from llama_cpt.data.sources.documents import (
    Document,
    files_without_checksums,
    parse_documents,
    read_blocks,
)
from llama_cpt.data.sources.files import find_sources
from llama_cpt.runtime.errors import UserError
from tests.data.corpus_files import COMPRESS, prepared_files

TEMPLATE = "{title}\n\n{data.text} {{kept}} {}"
RECORDS = [
    ({"title": "T1", "data": {"text": "中文"}}, "T1\n\n中文 {kept} {}"),
    ({"title": "", "data": {"text": "two {title}"}}, "\n\ntwo {title} {kept} {}"),
    ({"title": "T3", "data": {"text": None}}, "text is not a string (field 'data.text': "),
    ({"title": " ", "data": {"text": ""}}, "empty text (in all fields of the template)"),
    ({"title": "T5", "data": {"text": "five"}}, "T5\n\nfive {kept} {}"),
]


def read(path, field, block_bytes=1000):
    sources = find_sources(CorpusConfig("zh", str(path), text_field=field))
    found = [d for b in read_blocks(sources, field, block_bytes) for d in parse_documents(b, field)]
    return [d.text if isinstance(d, Document) else str(d).split(": ", 1)[1] for d in found]


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.mark.parametrize("name", ["a.parquet", "a.json", *(f"a.jsonl{s}" for s in COMPRESS)])
@pytest.mark.parametrize("block_bytes", [1, 1000])
def test_template_and_nested_field(name, block_bytes, tmp_path):
    path, records = tmp_path / name, [record for record, _ in RECORDS]
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    elif name == "a.json":
        path.write_text(json.dumps(records))
    else:
        path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](lines(*records)))
    found = read(path, TEMPLATE, block_bytes)
    assert len(found) == len(RECORDS)
    assert all(one.startswith(text) for one, (_, text) in zip(found, RECORDS, strict=True))
    nested = read(path, "data.text", block_bytes)
    assert nested[0] == "中文" and nested[2].startswith("text is not a string")


@pytest.mark.parametrize(
    ("record", "field", "message"),
    [
        ({"title": "t"}, "{title} {body}", "no field 'body' (its fields: title)"),
        ({"data": "x"}, "data.text", "no field 'data.text' (its fields: data)"),
        ({"data": {}}, "data.text", "no field 'data.text' (its fields: data)"),
        ({"a": 1, "b": "x"}, "{a}{b}", "text is not a string (field 'a': it is of type int)"),
        ({"a": ["x"], "b": "x"}, "{b}{a}", "text is not a string (field 'a': it is of type list)"),
        ({"a": "\ud800", "b": "x"}, "{a}{b}", "not UTF-8 (field 'a': a lone surrogate)"),
    ],
)
def test_missing_or_invalid_field_is_a_bad_document(record, field, message, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(record))
    assert read(tmp_path / "a.jsonl", field) == [message]


def test_field_with_exactly_the_name_comes_first(tmp_path):
    """Configs with such names were valid before templates and nested fields existed."""
    record = {"a.b": "flat", "a": {"b": "nested"}, "{a.b}": "braces"}
    (tmp_path / "a.jsonl").write_bytes(lines(record, {"a": {"b": "nested"}}))
    assert read(tmp_path / "a.jsonl", "a.b") == ["flat", "nested"]
    assert read(tmp_path / "a.jsonl", "{a.b}") == ["braces", "nested"]
    pq.write_table(pa.table({"{t}": ["braces"], "t": ["field"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "{t}") == ["braces"]
    assert read(tmp_path / "a.parquet", "<{t}>") == ["<field>"]


def test_text_of_a_template_is_bounded(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(lines({"t": "x" * 60}))
    monkeypatch.setattr(blocks, "MAX_DOCUMENT_BYTES", 100)
    assert read(tmp_path / "a.jsonl", "{t}") == ["x" * 60]
    [found] = read(tmp_path / "a.jsonl", "{t}{t}")
    assert found.startswith("larger than 64 MiB (it has 120 bytes")


def test_columns_of_a_template(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    count = 700
    texts = {"a": [f"a{n}" for n in range(count)], "b": [f"b{n}" * 40 for n in range(count)]}
    for checksum in (True, False):
        pq.write_table(pa.table(texts), path, row_group_size=300, write_page_checksum=checksum)
        sources = find_sources(CorpusConfig("zh", str(path)))
        assert files_without_checksums(sources, "{a}{b}") == ([] if checksum else [str(path)])
    found = read(path, "{b}-{a}-{b}")
    assert found == [f"{b}-{a}-{b}" for a, b in zip(*texts.values(), strict=True)]
    every = list(read_blocks(sources, "{a}{b}", 1000))
    start = documents.BlockStart(0, every[3].first)
    assert list(read_blocks(sources, "{a}{b}", 1000, start)) == every[3:]
    with pytest.raises(UserError, match="no column 'c'; its columns: a, b"):
        read(path, "{a}{c}")
    monkeypatch.setattr("llama_cpt.data.sources.parquet.MAX_DOCUMENT_BYTES", 150)
    assert read(path, "{a}{b}")[-1].startswith("larger than 64 MiB (field 'b': it has 160 bytes")


def test_column_of_lists_of_structs_is_an_error(tmp_path):
    pq.write_table(pa.table({"l": [[{"t": "x"}]], "s": [{"n": 1}]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'l.t'; its columns: l, s"):
        read(tmp_path / "a.parquet", "l.t")
    with pytest.raises(UserError, match="column 's.n' holds int64, not strings"):
        read(tmp_path / "a.parquet", "s.n")


def test_prepared_rows_are_those_of_the_joined_text(config, tmp_path):
    """A corpus with a template has the shards of a corpus whose text was joined before."""
    pairs = [(f"title {n}", f"text {n} " * 9) for n in range(40)]
    (tmp_path / "a.jsonl").write_bytes(lines(*({"t": t, "d": {"x": x}} for t, x in pairs)))
    (tmp_path / "b.jsonl").write_bytes(lines(*({"text": f"{t}\n{x}"} for t, x in pairs)))
    shards = []
    for name, field in (("a", "{t}\n{d.x}"), ("b", "text")):
        corpus = CorpusConfig("zh", str(tmp_path / f"{name}.jsonl"), text_field=field)
        data = replace(config, additional=(corpus,), heldout=(), prepared=str(tmp_path / name))
        prepared = prepare(data, 1)
        files = prepared_files(data)
        assert prepared.rows["zh"].rows > 0
        shards.append([c for p, c in files.items() if "/zh" in f"/{p}" and "record" in p])
    assert shards[0] == shards[1] and len(shards[0]) == 1
