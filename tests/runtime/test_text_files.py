"""Tests of the reader of text files that users wrote."""

import pytest

from llama_cpt.evaluation.bits_per_byte import read_source_names
from llama_cpt.evaluation.exact_match import read_questions
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.text_files import json_lines, read_text, text_lines

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_byte_order_marks_and_line_ends_do_not_change_lines(tmp_path, mark, end):
    file = tmp_path / "names.txt"
    file.write_bytes(mark + end.join([b"one", "tw\u2028o # comment".encode(), b"", b"three"]))
    assert text_lines(file) == ["one", "tw\u2028o # comment", "", "three"]
    file.write_bytes(file.read_bytes() + end)
    assert text_lines(file) == ["one", "tw\u2028o # comment", "", "three"]
    assert read_source_names(str(file)) == {"one", "tw\u2028o", "three"}


def test_text_that_is_not_utf8_is_an_error_with_its_line(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes(BOM + b"one\ntw\xff")
    with pytest.raises(UserError, match=r"names.txt:2: not UTF-8; save the file as UTF-8 text"):
        read_text(file)


def test_json_lines_end_only_at_line_feeds():
    text = '{"a": "x\u2028y\x85z"}\r\n\n[1]\n'
    assert list(json_lines(text, "f", "fix it")) == [(1, {"a": "x\u2028y\x85z"}), (3, [1])]
    for line, complaint in (("{", "not JSON"), ("[" * 100_000, "nested too deeply")):
        with pytest.raises(UserError, match=f"^f:2: {complaint}.*; fix it"):
            list(json_lines(f"1\n{line}", "f", "fix it"))


def test_questions_can_have_a_byte_order_mark_and_blank_lines(tmp_path):
    file = tmp_path / "questions.jsonl"
    line = '{"language": "en", "question": "a\u2028b", "answers": ["c"]}'
    file.write_bytes(BOM + f"\n{line}\r\n\n{line}\n".encode())
    assert [question.question for question in read_questions(str(file))] == ["a\u2028b"] * 2
    file.write_bytes(b"\n\n{}")
    with pytest.raises(UserError, match="questions.jsonl:3: not a question"):
        read_questions(str(file))
    file.write_bytes(b"\n")
    with pytest.raises(UserError, match="has no questions"):
        read_questions(str(file))
