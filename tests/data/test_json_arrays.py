"""Arrays, compressed files and large documents are read in pieces."""

import json
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.data.sources import blocks, streams
from llama_cpt.data.sources.documents import (
    BadDocument,
    BlockStart,
    Document,
    parse_documents,
    read_blocks,
)
from llama_cpt.data.sources.files import find_sources
from llama_cpt.data.sources.json_arrays import split_array
from llama_cpt.runtime.errors import UserError
from tests.data.corpus_files import COMPRESS

LARGE = "larger than 64 MiB"
JSON = st.recursive(
    st.none() | st.floats(allow_nan=False) | st.text('ab"\\[]{},中\n', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"]'), inner, max_size=3),
    max_leaves=8,
)


def read(path, block_bytes=1000):
    found = read_blocks(find_sources(CorpusConfig("zh", str(path))), "text", block_bytes)
    return [document for block in found for document in parse_documents(block, "text")]


def texts_or_reasons(path, block_bytes=1000):
    found = read(path, block_bytes)
    return [d.text if isinstance(d, Document) else d.reason for d in found]


@settings(deadline=None, max_examples=80)
@given(
    st.lists(JSON, max_size=4),
    st.integers(1, 9),
    st.sampled_from([None, 1]),
    st.tuples(st.integers(0, 99), st.sampled_from('[]{}",\\x ')),
)
def test_elements_are_those_of_the_parsed_array(values, size, indent, change):
    """A damaged array gives the same elements as ``json.loads``, or an error as ``json.loads``."""

    def elements(raw):
        chunks = (raw[at : at + size] for at in range(0, len(raw), size))
        return [
            json.loads(one) for one in split_array("p", chunks, 1 << 20) if isinstance(one, bytes)
        ]

    text = json.dumps(values, ensure_ascii=False, indent=indent)
    assert elements(f" {text}\n".encode()) == values
    at = 1 + change[0] % len(text)
    damaged = (text[:at] + change[1] + text[at + 1 :]).encode()
    try:
        expected = json.loads(damaged)
    except ValueError:
        with pytest.raises(ValueError, match="."):
            elements(damaged)
    else:
        assert elements(damaged) == expected


@pytest.mark.parametrize("text", ["[1,]", "[,1]", "[1,,2]", "[1 2", "[1]]"])
def test_array_with_a_missing_part_is_an_error(text):
    with pytest.raises(UserError, match="p: not a JSON array"):
        list(split_array("p", [text.encode()], 99))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_large_documents_are_not_kept_in_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(blocks, "MAX_DOCUMENT_BYTES", 1 << 16)
    text = json.dumps({"text": "a" * (24 << 20)})
    path = tmp_path / name
    path.write_text(f"[{text}]" if name == "a.json" else text)
    tracemalloc.start()
    try:
        assert texts_or_reasons(path, 1 << 16) == [LARGE]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_array_of_documents(tmp_path, suffix, monkeypatch):
    values = [{"text": f'[{n}]中"\\ ' * 9} for n in range(50)]
    text = "\ufeff " + json.dumps([*values[:2], 7, *values[2:]], indent=1, ensure_ascii=False)
    path = tmp_path / f"a.json{suffix}"
    path.write_bytes(COMPRESS[suffix](text.encode()))
    found = read(path)
    assert [d.text for d in found if isinstance(d, Document)] == [v["text"] for v in values]
    assert str(found[2]).startswith(f"{path}:3: not a JSON object")
    sources = find_sources(CorpusConfig("zh", str(path)))
    every = list(read_blocks(sources, "text", 500))
    start = BlockStart(first=every[3].first)
    again = list(read_blocks(sources, "text", 500, start))
    assert [block.raw for block in again] == [block.raw for block in every[3:]]
    monkeypatch.setattr(blocks, "MAX_DOCUMENT_BYTES", 100)
    path.write_bytes(COMPRESS[suffix](json.dumps([{"text": "a" * 200}, {"text": "b"}]).encode()))
    assert texts_or_reasons(path) == [LARGE, "b"]
    path.write_bytes(COMPRESS[suffix](b'[{"text": "a"}, {"text": '))
    with pytest.raises(UserError, match="not a JSON array .its end is missing, after element 1"):
        read(path)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.md"])
def test_text_file_is_one_bounded_document(tmp_path, name, suffix, monkeypatch):
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESS[suffix]("\ufeffeins\r\nzwei\rdrei\n".encode()))
    assert texts_or_reasons(path) == ["eins\nzwei\ndrei\n"]
    path.write_bytes(COMPRESS[suffix]("文本".encode("utf-16")))
    (found,) = read(path)
    assert str(found) == f"{path}: not UTF-8 (the file is UTF-16; convert it to UTF-8)"
    monkeypatch.setattr(blocks, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr("llama_cpt.data.sources.documents.MAX_DOCUMENT_BYTES", 100)
    path.write_bytes(COMPRESS[suffix](b"x" * 101))
    assert "split it into several documents" in str(read(path)[0])


def test_lines_of_other_encodings_or_line_ends_are_explained(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "a"}\n'.encode("utf-16"))
    assert "the file is UTF-16; convert it to UTF-8" in str(read(path)[0])
    path.write_bytes(b'{"text": "a"}\r{"text": "b"}\r')
    assert "a line must end with LF, not with CR alone" in str(read(path)[0])


@pytest.mark.parametrize(("suffix", "block_bytes"), [("", 7), ("", 64), (".gz", 1000), (".zst", 7)])
def test_large_line_is_a_bad_document(tmp_path, monkeypatch, suffix, block_bytes):
    """The lines around it keep their numbers, and reading can resume after it."""
    monkeypatch.setattr(blocks, "MAX_DOCUMENT_BYTES", 100)
    lines = [json.dumps({"text": text}) for text in ("a", "b" * 500, "c", "d" * 90, "e" * 88, "f")]
    path = tmp_path / f"a.jsonl{suffix}"
    for end in ("\n", ""):
        content = ("\n".join(lines) + end).encode()
        path.write_bytes(COMPRESS[suffix](content))
        found = read(path, block_bytes)
        shown = [d.text if isinstance(d, Document) else d.reason for d in found]
        assert shown == ["a", LARGE, "c", LARGE, "e" * 88, "f"]
        assert [d.number for d in found] == [1, 2, 3, 4, 5, 6]
        sources = find_sources(CorpusConfig("zh", str(path)))
        every = list(read_blocks(sources, "text", block_bytes))
        assert sum(block.size for block in every) == len(content)
        for number, block in enumerate(every):
            start = BlockStart(0, block.first, sum(b.size for b in every[:number]))
            again = read_blocks(sources, "text", block_bytes, start)
            assert [b.raw for b in again] == [b.raw for b in every[number:]]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.jsonl", ".gz"), ("a.json", ".gz"), ("a.txt", ".zst"), ("a.jsonl", ".bz2")],
)
def test_decompression_bomb_is_an_error(tmp_path, monkeypatch, name, suffix):
    monkeypatch.setattr(streams, "BOMB_BYTES", 1 << 20)
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESS[suffix](b"[" + bytes(5 << 20)))
    with pytest.raises(UserError, match="over 200 times as many.* decompress the file"):
        read(path, 1 << 19)


def test_deep_json_is_a_bad_document(tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": {deep}}}\n{{"text": "b"}}')
    assert texts_or_reasons(path) == ["not JSON", "b"]
    path = tmp_path / "a.json"
    path.write_text(f'[{{"text": {deep}}}, {{"text": "b"}}]')
    assert texts_or_reasons(path) == ["not JSON", "b"]
    assert isinstance(read(path)[0], BadDocument)
