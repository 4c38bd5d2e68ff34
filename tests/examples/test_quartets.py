"""Tests of the quartets: four questions share four endings, and each has one correct ending."""

from collections import Counter
import json
import re

import pytest

from examples.bilingual_world.documents import LANGUAGES, write_world
from examples.bilingual_world.facts import make_world
from examples.bilingual_world.quartets import quartet_lines

SUBJECTS = ("facts", "arithmetic", "feelings")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 0, documents=600, heldout=10, chat_repeats=1)
    return folder


@pytest.fixture(scope="module")
def questions():
    world = make_world(0)
    return {
        (subject, code): list(lines)
        for code, language in LANGUAGES.items()
        for subject, lines in quartet_lines(world, language, 0).items()
    }


def test_files_contain_the_questions(written, questions):
    assert set(questions) == {(subject, code) for subject in SUBJECTS for code in LANGUAGES}
    for (subject, code), lines in questions.items():
        text = (written / f"{code}.{subject}.jsonl").read_text("utf-8")
        assert [json.loads(line) for line in text.splitlines()] == lines


def test_four_questions_share_their_choices_and_each_is_correct_once(questions):
    for lines in questions.values():
        assert 170 < len(lines) < 400
        for start in range(0, len(lines), 4):
            four = lines[start : start + 4]
            assert len({tuple(line["choices"]) for line in four}) == 1
            assert len(set(four[0]["choices"])) == 4
            assert sorted(line["answer"] for line in four) == [0, 1, 2, 3]
            assert len({line["text"] for line in four}) == 4
        whole = Counter((line["text"], *sorted(line["choices"])) for line in lines)
        assert max(whole.values()) == 1


def test_languages_have_the_same_questions(questions):
    for subject in SUBJECTS:
        kinds = [[(x["kind"], x["answer"]) for x in questions[subject, code]] for code in LANGUAGES]
        assert kinds[0] == kinds[1]


def test_documents_contain_correct_endings_and_no_wrong_ones(written, questions):
    """A search in all training documents finds only the correct ending after the text."""
    for code, language in LANGUAGES.items():
        text = (written / f"{code}.train.jsonl").read_text("utf-8")
        seen = 0
        for line in questions["facts", code]:
            found = [f"{line['text']}{language.space}{end}" in text for end in line["choices"]]
            assert not any(found[: line["answer"]] + found[line["answer"] + 1 :]), line
            seen += found[line["answer"]]
        assert seen > 100


def test_correct_sum_has_the_numbers_of_the_story(questions):
    signs = {"+": int.__add__, "-": int.__sub__, "×": int.__mul__, "÷": int.__floordiv__}
    of_story = {"giving": "+", "losing": "-", "gathering": "-", "walking": "+"}
    of_story |= {"rows": "×", "sharing": "÷"}
    for line in questions["arithmetic", "en"]:
        first = re.search(r"\d+$", line["text"])
        at_end = first[0] if first else ""
        for end in line["choices"]:
            found = re.search(r"(\d* ?)([+×÷-]) (\d+) = (\d+)\.$", end)
            assert found
            left = int(found[1] or at_end)
            assert signs[found[2]](left, int(found[3])) == int(found[4])
        if line["kind"].startswith("sum."):
            assert of_story[line["kind"].removeprefix("sum.")] in line["choices"][line["answer"]]
