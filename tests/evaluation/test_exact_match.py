"""Exact-match accuracy: optional suffixes, chance and intervals."""

import json

from hypothesis import given
from hypothesis import strategies as st
import pytest

from examples.bilingual_world.chats import examination_lines
from examples.bilingual_world.documents import LANGUAGES
from llama_cpt.evaluation.exact_match import Accuracy, Question, grade, read_questions
from llama_cpt.runtime.errors import UserError

QUESTIONS = (
    Question("en", "Who?", ("Lina.", "It is Lina."), "Fair winds!", 0.25),
    Question("en", "Where?", ("Here.",), "Fair winds!", 0.75),
    Question("zh", "谁？", ("丽娜。",), "", 0.1),
)


def test_accuracy_counts_exact_answers_and_suffixes():
    found = grade(QUESTIONS, [" It is Lina. Fair winds!\n", "There. Fair winds!", "丽娜"])
    assert found["en"] == Accuracy(questions=2, correct=1, with_suffix=2, chance=0.5)
    assert found["zh"] == Accuracy(questions=1, correct=0, with_suffix=0, chance=0.1)


def test_suffix_alone_is_not_an_answer():
    assert grade(QUESTIONS[:1], ["Fair winds!"])["en"].correct == 0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_contains_the_share(counts):
    right, questions = counts
    mark = Accuracy(questions, right, 0, 0.0)
    low, high = mark.interval()
    assert 0 <= low <= mark.share + 1e-12 and mark.share - 1e-12 <= high <= 1


def test_interval_is_the_wilson_score_interval():
    low, high = Accuracy(100, 10, 0, 0.0).interval()
    assert (round(low, 4), round(high, 4)) == (0.0552, 0.1744)


def test_questions_of_the_world_are_read(tmp_path):
    path = tmp_path / "examination.jsonl"
    lines = examination_lines(LANGUAGES)
    path.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    questions = read_questions(str(path))
    by_language = {code: [q for q in questions if q.language == code] for code in LANGUAGES}
    assert all(len(asked) >= 200 for asked in by_language.values())
    right = grade(questions, [f"{q.answers[0]} {q.optional_suffix}" for q in questions])
    assert all(mark.share == 1 and mark.with_suffix == mark.questions for mark in right.values())
    assert 0.1 < right["zh"].chance < 0.2


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"question": "Who?"}', '{"who": 1, "answers": ["x"]}']
)
def test_bad_line_is_rejected_with_its_number(tmp_path, line):
    path = tmp_path / "questions.jsonl"
    path.write_text(f'{{"language": "en", "question": "?", "answers": ["x"]}}\n{line}\n')
    with pytest.raises(UserError, match=r"questions.jsonl:2: not (JSON|a question)"):
        read_questions(str(path))
