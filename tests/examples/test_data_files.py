"""Tests of the data file readers: an error names the damaged file and line."""

import pytest

from examples.bilingual_world import data_files
from llama_cpt.runtime.errors import UserError

TEMPLATES = ("facts", "questions", "sums", "writings", "talk", "stories")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "_FOLDER", tmp_path)
    language = tmp_path / "languages" / "xx"
    language.mkdir(parents=True)
    for name in TEMPLATES:
        (language / f"{name}.txt").write_text(f"{name}.key: one: two\n{name}.key: three\n")
    for read in (data_files.read_table, data_files.read_templates):
        read.cache_clear()
    yield tmp_path
    for read in (data_files.read_table, data_files.read_templates):
        read.cache_clear()


def test_templates_keep_their_order(folder):
    found = data_files.read_templates("xx")
    assert found == {f"{name}.key": ("one: two", "three") for name in TEMPLATES}


def test_tables_keep_their_order(folder):
    (folder / "words.toml").write_text('b = "x"\na = ["y", 1]\n')
    assert list(data_files.read_table("words.toml").items()) == [("b", "x"), ("a", ["y", 1])]


@pytest.mark.parametrize("text", ["a: b\n\nc: d\n", "a: b\nno separator\n"])
def test_damaged_template_names_the_line(folder, text):
    (folder / "languages" / "xx" / "sums.txt").write_text(text)
    with pytest.raises(UserError, match=r"sums\.txt: line 2 is not `key: template`.*; restore"):
        data_files.read_templates("xx")


@pytest.mark.parametrize("content", [b"a = \n", b"\xff"])
def test_damaged_or_missing_table_names_the_file(folder, content):
    (folder / "words.toml").write_bytes(content)
    for name in ("words.toml", "absent.toml"):
        with pytest.raises(UserError, match=rf"{name}: .*; restore"):
            data_files.read_table(name)
