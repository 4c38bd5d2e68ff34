"""Corpora from source files with unusual names, patterns, bad documents or too little text."""

from dataclasses import replace
from pathlib import Path
import shutil

import pyarrow
import pyarrow.parquet
import pytest

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.rows import TokenRows
from llama_cpt.data.sources.documents import Document, parse_documents, read_blocks
from llama_cpt.data.sources.files import find_sources
from llama_cpt.runtime.errors import UserError
from tests.data.corpus_files import texts, write_lines


def test_bad_documents_are_an_error_or_skipped(config, tmp_path):
    bad = [b'{"body": 1}\n', b"not JSON\n", b'{"text": "\xff"}\n', b'{"text": 3}\n', b"not JSON\n"]
    content = (tmp_path / "en.jsonl").read_bytes()
    (tmp_path / "en.jsonl").write_bytes(content + b"".join(bad))
    for workers in (1, 2):
        with pytest.raises(
            UserError, match=r"en.jsonl:101: no field 'text' \(its fields: body\).*skip"
        ):
            prepare(config, workers)
    skipping = replace(config, bad_documents="skip")
    manifest = prepare(skipping).rows["en"]
    assert manifest.documents == 100
    assert manifest.skipped == {
        "no field 'text'": 1,
        "not JSON": 2,
        "not UTF-8": 1,
        "text is not a string": 1,
    }
    with pytest.raises(UserError, match="bad_documents was 'skip', is 'error'"):
        prepare(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"corpus 'en' .*en.jsonl\) contains no documents; add text\."),
        (b"\n \n", "contains no documents"),
        (b"what?\n", "contains no documents, 1 skipped"),
        (
            b'{"text": "short"}\n',
            r"has 7 tokens, but a row takes 32; add text with 25 more tokens.*sequence_length",
        ),
    ],
)
def test_corpus_without_rows_is_an_error(config, tmp_path, content, message):
    (tmp_path / "en.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(replace(config, bad_documents="skip"))
    assert not (Path(config.prepared) / "en" / "manifest.json").exists()


def test_held_out_file_that_is_trained_on_is_a_warning(config, caplog):
    prepare(
        replace(config, heldout=(replace(config.heldout[0], source=config.original[0].source),))
    )
    assert "held-out corpus 'zh' and corpus 'en' share" in caplog.text


@pytest.mark.parametrize("name", ["heldout", "a/b", "..", ""])
def test_corpus_name_must_be_a_folder_name(config, name):
    with pytest.raises(UserError, match="corpus name .* must be a folder name"):
        prepare(replace(config, original=(replace(config.original[0], name=name),)))


NAMES = ("t [1].jsonl", "a::b.jsonl", "* {?} #%20'.jsonl", "~t.jsonl")


@pytest.mark.parametrize("name", NAMES)
def test_existing_source_is_read_literally(config, tmp_path, caplog, name):
    folder = tmp_path / "[d] a::b"
    folder.mkdir()
    write_lines(folder / name, texts(100, 4))
    write_lines(folder / "t 1.jsonl", texts(100, 5))
    literal = replace(
        config,
        prepared=str(tmp_path / "rows[1]*"),
        additional=(CorpusConfig("zh", str(folder / name)),),
    )
    first = prepare(literal)
    assert [source["path"] for source in first.rows["zh"].sources] == [str(folder / name)]
    assert [len(TokenRows(first.folder("zh")))] == [first.rows["zh"].rows]
    # Prepared rows in a folder with such a name are found again, also without their sources.
    (folder / "t 1.jsonl").unlink()
    (folder / name).unlink()
    assert prepare(literal) == first
    assert "are used as they were prepared" in caplog.text


def test_pattern_below_an_existing_folder(config, tmp_path):
    folder = tmp_path / "[d]*"
    folder.mkdir()
    for name in ("a1.jsonl", "a2.jsonl", "b.jsonl"):
        write_lines(folder / name, texts(10, 4))
    found = find_sources(CorpusConfig("zh", str(folder / "a?.jsonl")))
    assert found.files == (str(folder / "a1.jsonl"), str(folder / "a2.jsonl"))
    corpus = replace(config.additional[0], source=str(folder / "a?.jsonl"))
    first = prepare(replace(config, additional=(corpus,)))
    shutil.rmtree(folder)
    assert prepare(replace(config, additional=(corpus,))) == first


@pytest.mark.parametrize("name", ["t [1].parquet", "a::b.parquet", "a::b.txt", "c::d.jsonl.gz"])
def test_every_kind_of_source_is_read_by_its_literal_name(tmp_path, name):
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["one"]}), tmp_path / name)
    elif name.endswith(".txt"):
        (tmp_path / name).write_text("one")
    else:
        write_lines(tmp_path / name, ["one"])
    blocks = read_blocks(find_sources(CorpusConfig("zh", str(tmp_path / name))), "text", 1 << 20)
    (document,) = (one for block in blocks for one in parse_documents(block, "text"))
    assert isinstance(document, Document)
    assert document.text == "one" and document.path == str(tmp_path / name)
