"""Exact answers are counted as such, and beside them what comes by chance."""

import json

from hypothesis import given
from hypothesis import strategies as st
import pytest

from examples.bilingual_world.chats import examination_lines
from examples.bilingual_world.documents import LANGUAGES
from llama_cpt.evaluation.exact_match import Mark, Question, marks, read_examination
from llama_cpt.runtime.errors import UserError

QUESTIONS = (
    Question("en", "Who?", ("Lina.", "It is Lina."), "Fair winds!", 0.25),
    Question("en", "Where?", ("Here.",), "Fair winds!", 0.75),
    Question("zh", "谁？", ("丽娜。",), "", 0.1),
)


def test_marks():
    found = marks(QUESTIONS, [" It is Lina. Fair winds!\n", "There. Fair winds!", "丽娜"])
    assert found["en"] == Mark(questions=2, right=1, closed=2, chance=0.5)
    assert found["zh"] == Mark(questions=1, right=0, closed=0, chance=0.1)


def test_the_closing_alone_is_no_answer():
    assert marks(QUESTIONS[:1], ["Fair winds!"])["en"].right == 0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_holds_the_share(counts):
    right, questions = counts
    mark = Mark(questions, right, 0, 0.0)
    low, high = mark.interval()
    assert 0 <= low <= mark.share + 1e-12 and mark.share - 1e-12 <= high <= 1


def test_interval_is_wilsons():
    low, high = Mark(100, 10, 0, 0.0).interval()
    assert (round(low, 4), round(high, 4)) == (0.0552, 0.1744)


def test_the_worlds_examination_is_read(tmp_path):
    path = tmp_path / "examination.jsonl"
    lines = examination_lines(LANGUAGES)
    path.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    questions = read_examination(str(path))
    by_language = {code: [q for q in questions if q.language == code] for code in LANGUAGES}
    assert all(len(asked) >= 200 for asked in by_language.values())
    right = marks(questions, [f"{q.answers[0]} {q.closing}" for q in questions])
    assert all(mark.share == 1 and mark.closed == mark.questions for mark in right.values())
    assert 0.1 < right["zh"].chance < 0.2


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"question": "Who?"}', '{"who": 1, "answers": ["x"]}']
)
def test_bad_lines_are_named(tmp_path, line):
    path = tmp_path / "questions.jsonl"
    path.write_text(f'{{"language": "en", "question": "?", "answers": ["x"]}}\n{line}\n')
    with pytest.raises(UserError, match=r"questions.jsonl:2: not a question"):
        read_examination(str(path))
