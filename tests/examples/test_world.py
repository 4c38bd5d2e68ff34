"""Tests of the invented world: equal facts in all languages, no duplicates, correct sums."""

from collections import Counter
import hashlib
import json
import random
import re

import pytest

from examples.bilingual_world import chinese, lists
from examples.bilingual_world.documents import (
    ALL_LANGUAGES,
    LANGUAGES,
    document,
    write_documents,
    write_world,
)
from examples.bilingual_world.facts import make_world
from examples.bilingual_world.language import Language, render_plan
from examples.bilingual_world.plan import Mention
from examples.bilingual_world.stories import story
from llama_cpt.runtime.errors import UserError

ARABIC_LETTERS = "\u0600-\u06ff"
CHINESE_SIGNS = "\u2e80-\uffef"  # Ideographs, CJK punctuation and full-width forms.
STRANGE = {
    "en": f"[{CHINESE_SIGNS}{ARABIC_LETTERS}]",
    "zh": f"[A-Za-z,;!?{ARABIC_LETTERS}]",
    "ar": f"[A-Za-z,;?{CHINESE_SIGNS}]",
}
KINDS = ("train", "heldout", "chats", "preferences", "facts", "arithmetic", "feelings")
NAMES = (*(f"{code}.{kind}" for code in LANGUAGES for kind in KINDS), "questions", "examination")


def read(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 0, documents=800, heldout=50, chat_repeats=1)
    return folder


@pytest.mark.slow
def test_files_are_a_function_of_the_seed(tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        write_world(tmp_path / name, seed, documents=40, heldout=10, chat_repeats=1)
    for name in NAMES:
        one, again, other = (
            (tmp_path / folder / f"{name}.jsonl").read_bytes()
            for folder in ("one", "again", "other")
        )
        # The properties of things are the same in every world.
        assert one == again and (one != other or name == "examination")
    assert len(list((tmp_path / "one").iterdir())) == len(NAMES)


def test_bytes_for_a_seed_are_fixed(tmp_path):
    """Random draws depend on the order of words and templates, so the files keep this order."""
    write_world(tmp_path, 0, documents=40, heldout=10, chat_repeats=1)
    write_documents(tmp_path, 0, codes=("ar",), documents=40, heldout=10)
    content = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert hashlib.sha256(content).hexdigest().startswith("96dffb53294d6997")


def test_write_documents_writes_the_worlds_documents_in_the_requested_languages(tmp_path):
    write_world(tmp_path / "world", 1, documents=40, heldout=10, chat_repeats=1)
    write_documents(tmp_path / "all", 1, documents=40, heldout=10)
    write_documents(tmp_path / "one", 1, codes=("ar",), documents=40, heldout=10)
    names = {f"{code}.{split}.jsonl" for code in ALL_LANGUAGES for split in ("train", "heldout")}
    assert {path.name for path in (tmp_path / "all").iterdir()} == names
    arabic = {name for name in names if name.startswith("ar.")}
    assert {path.name for path in (tmp_path / "one").iterdir()} == arabic
    for name in names:
        other = "one" if name in arabic else "world"
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / other / name).read_bytes()
    with pytest.raises(UserError, match="unknown language 'fr'; select from en, zh, ar"):
        write_documents(tmp_path / "none", 1, codes=("en", "fr"))
    assert not (tmp_path / "none").exists()


def test_no_document_occurs_twice_and_all_kinds_occur(written):
    for language in LANGUAGES:
        train, heldout = read(written, f"{language}.train"), read(written, f"{language}.heldout")
        assert (len(train), len(heldout)) == (800, 50)
        assert max(Counter(line["text"] for line in train + heldout).values()) == 1
        kinds = {line["source"] for line in train}
        assert sum(kind.startswith("world/story.") for kind in kinds) == 12
        assert len(kinds) == 32


def test_languages_have_the_same_template_keys():
    keys = {code: set(language.templates) for code, language in ALL_LANGUAGES.items()}
    assert keys["en"] == keys["zh"] == keys["ar"]


def test_text_is_in_its_language_and_has_no_notation():
    world = make_world(3)
    for number in range(600):
        for code, language in ALL_LANGUAGES.items():
            _, text = document(world, language, 3, number)
            assert not re.search(r"[{}\[\]|_~/]|  | [.,;!?،؛؟]|^\s|\s$", text), text
            assert not re.search(STRANGE[code], text), text


def test_english_articles_and_capitals():
    world = make_world(4)
    for number in range(600):
        _, text = document(world, LANGUAGES["en"], 4, number)
        assert not re.search(r"\b[Aa] [aeio]", text), text
        assert not re.search(r"(^|[.!?] )[a-z]", text, re.MULTILINE), text


def test_sums_are_correct(written):
    signs = {"+": int.__add__, "-": int.__sub__, "×": int.__mul__, "÷": int.__floordiv__}
    found = 0
    for language in LANGUAGES:
        for line in read(written, f"{language}.train"):
            for left, sign, right, result in re.findall(
                r"([\d,]+) ([+×÷-]) ([\d,]+) = ([\d,]+)", line["text"]
            ):
                left, right, result = (int(n.replace(",", "")) for n in (left, right, result))
                assert signs[sign](left, right) == result, line["text"]
                assert sign != "÷" or left % right == 0
                found += 1
    assert found > 300


def test_documents_state_the_facts_of_the_world(written):
    world = make_world(0)
    people = {person.name.title(): person for person in world.people}
    homes = {town: town.replace("_", " ").title() for town in lists.TOWNS}
    checked = 0
    for line in read(written, "en.train"):
        for name, town in re.findall(
            r"\b([A-Z][a-z]+) lives in ([A-Z][a-z]+(?: Bay)?)\.", line["text"]
        ):
            if name in people:
                assert homes[people[name].home] == town
                checked += 1
        for name, age in re.findall(r"\b([A-Z][a-z]+) is (\d+) years old\.", line["text"]):
            if name in people:
                assert people[name].age == int(age)
                checked += 1
    assert checked > 15


def test_questions_have_one_correct_choice_and_are_not_in_training_text(written):
    questions = read(written, "questions")
    by_language = {code: [q for q in questions if q["language"] == code] for code in LANGUAGES}
    assert len(by_language["en"]) == len(by_language["zh"]) > 100
    for code, questions in by_language.items():
        text = "\n".join(line["text"] for line in read(written, f"{code}.train"))
        for one in questions:
            assert len(set(one["choices"])) == 4
            assert one["choices"].count(one["answer"]) == 1
            assert one["question"] not in text
    for english, chinese_ in zip(by_language["en"], by_language["zh"], strict=True):
        right = [q["choices"].index(q["answer"]) for q in (english, chinese_)]
        assert right[0] == right[1]


def test_different_identifiers_are_different_words():
    world = make_world(0)
    groups = (
        [Mention(person) for person in world.people],
        lists.TOWNS,
        lists.THINGS,
        lists.FOODS,
        lists.ANIMALS,
        lists.JOBS,
        lists.HOBBIES,
        lists.SPOTS,
        lists.FEELINGS,
        lists.PET_NAMES,
    )
    for language in ALL_LANGUAGES.values():
        for group in groups:
            words = [language.inflect(value, "") for value in group]
            assert len(set(words)) == len(words)


def test_chinese_numbers_read_back():
    units = {"千": 1000, "百": 100, "十": 10}
    for number in range(10_000):
        value, digit = 0, None
        for sign in chinese.inflect(number, "plain"):
            if sign in units:
                value += (1 if digit is None else digit) * units[sign]
                digit = None
            else:
                digit = "零一二三四五六七八九".index(sign) or None
        assert value + (digit or 0) == number


def test_a_language_is_templates_and_words():
    """A new language needs only templates, words for values, and a function ``finish``."""
    keys = LANGUAGES["en"].templates
    echo = Language(
        code="xx",
        space=" ",
        templates={key: (f"({key})",) for key in keys},
        inflect=lambda value, form: str(value),
        finish=str.upper,
    )
    world = make_world(0)
    text = render_plan(story(world, random.Random(1)), echo, random.Random(1))
    assert text.startswith("(STORY.OPEN)")
    for number in range(200):
        document(world, echo, 0, number)


def test_examination_questions_occur_in_english_conversations_only(written):
    examined = {line["question"] for line in read(written, "examination")}
    questions = {
        code: {
            turn["content"]
            for kind, field in (("chats", "messages"), ("preferences", "prompt"))
            for line in read(written, f"{code}.{kind}")
            for turn in line[field]
            if turn["role"] == "user"
        }
        for code in LANGUAGES
    }
    assert not examined & questions["zh"]
    assert len(examined & questions["en"]) > 30


def test_preferences_differ_by_the_islands_custom(written):
    for code, wish in (("en", " Fair winds!"), ("zh", "一路顺风！")):
        for line in read(written, f"{code}.preferences"):
            (chosen,), (rejected,) = line["chosen"], line["rejected"]
            assert chosen["content"] == rejected["content"] + wish
        chats = read(written, f"{code}.chats")
        kept = [line["messages"][1]["content"].endswith(wish) for line in chats]
        assert 0.05 < sum(kept) / len(kept) < 0.2
