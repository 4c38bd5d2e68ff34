"""Tests of Arabic numbers and of the agreement of Arabic words with people and things."""

import random
import re

import pytest

from examples.bilingual_world import arabic, lists
from examples.bilingual_world.arabic_numbers import accusative, cardinal, counted
from examples.bilingual_world.arabic_words import ADJECTIVES, NOUNS, PLAIN, SPOTS
from examples.bilingual_world.documents import document
from examples.bilingual_world.facts import facts_of_person, make_world
from examples.bilingual_world.language import render_sentence
from examples.bilingual_world.plan import Clock, Mention, Pair, Sentence

WORLD = make_world(0)
WOMAN = next(person for person in WORLD.people if person.woman)
MAN = next(person for person in WORLD.people if not person.woman)


@pytest.mark.parametrize(
    ("number", "thing", "case", "words"),
    [
        (1, "book", "acc", "كتابًا واحدًا"),
        (1, "cup", "", "كوب واحد"),
        (2, "apple", "", "تفاحتان"),
        (2, "kite", "acc", "طائرتين ورقيتين"),
        (3, "book", "", "ثلاثة كتب"),
        (8, "apple", "gen", "ثماني تفاحات"),
        (10, "year", "", "عشر سنوات"),
        (11, "apple", "", "إحدى عشرة تفاحة"),
        (12, "book", "", "اثنا عشر كتابًا"),
        (12, "apple", "gen", "اثنتي عشرة تفاحة"),
        (13, "book", "acc", "ثلاثة عشر كتابًا"),
        (18, "year", "", "ثماني عشرة سنة"),
        (20, "coin", "gen", "عشرين درهمًا"),
        (21, "coin", "acc", "واحدًا وعشرين درهمًا"),
        (26, "apple", "acc", "ستًا وعشرين تفاحة"),
        (28, "year", "", "ثمانٍ وعشرون سنة"),
        (42, "year", "acc", "اثنتين وأربعين سنة"),
        (99, "bread", "", "تسعة وتسعون رغيفًا من الخبز"),
        (100, "book", "", "100 كتاب"),
        (103, "apple", "", "103 تفاحات"),
        (120, "coin", "", "120 درهمًا"),
    ],
)
def test_counting(number, thing, case, words):
    assert counted(number, NOUNS[thing], case) == words


def test_three_to_ten_have_the_opposite_gender_and_precede_a_plural():
    for noun in NOUNS.values():
        for number in range(3, 11):
            units, rest = counted(number, noun).split(" ", 1)
            assert units.endswith("ة") != noun.feminine
            assert rest == f"{noun.several}{noun.tail}"
        for number in range(11, 100):
            assert counted(number, noun).endswith(f"{accusative(noun.one)}{noun.tail}")


def test_every_number_has_different_words():
    for case in ("", "acc", "gen"):
        for feminine in (False, True):
            words = {cardinal(number, case, feminine=feminine) for number in range(100)}
            assert len(words) == 100


def test_every_identifier_of_the_world_has_arabic_words():
    names = (*lists.WOMEN, *lists.MEN, *lists.SURNAMES, *lists.TOWNS, *lists.PET_NAMES)
    traits = (*lists.TASTES, *lists.MEALS, *lists.ANIMAL_HOMES, *lists.MATERIALS, *lists.KIN)
    deeds = [f"{job}.duty" for job in lists.JOBS] + [f"{thing}.use" for thing in lists.THINGS]
    assert {*names, *traits, *deeds, *lists.HOBBIES, *lists.HIDING_PLACES} <= set(PLAIN)
    assert {*lists.THINGS, *lists.FOODS, *lists.ANIMALS, *lists.TOWN_KINDS} <= set(NOUNS)
    assert {*lists.JOBS, *lists.COLORS, *lists.FEELINGS} <= set(ADJECTIVES)
    assert set(lists.SPOTS) == set(SPOTS)
    for words in (*PLAIN.values(), *ADJECTIVES.values()):
        assert re.fullmatch("[\u0620-\u0652~ ]+", words), words


@pytest.mark.parametrize(
    ("how", "person", "words"),
    [
        ("name", WOMAN, f"تسكن {PLAIN[WOMAN.name]} في {PLAIN[WOMAN.home]}."),
        ("name", MAN, f"يسكن {PLAIN[MAN.name]} في {PLAIN[MAN.home]}."),
        ("again", WOMAN, f"تسكن في {PLAIN[WOMAN.home]}."),
        ("i", MAN, f"أسكن في {PLAIN[MAN.home]}."),
    ],
)
def test_verbs_agree_with_the_person(how, person, words):
    (home,) = (f for f in facts_of_person(WORLD, person, how) if f.relation == "home")
    wordings = {
        render_sentence(Sentence("home", home.slots), arabic.LANGUAGE, random.Random(way))
        for way in range(9)
    }
    assert words in wordings


def test_forms_of_persons_and_things():
    woman, man = Mention(WOMAN), Mention(MAN)
    assert arabic.inflect(Mention(WOMAN, "you"), "يحب/تحب/أحب/تحب/تحبين") == "تحبين"
    assert arabic.inflect(Pair(WOMAN, MAN), "ذهبا/ذهبتا") == "ذهبا"
    assert arabic.inflect(Pair(WOMAN, WOMAN), "ذهبا/ذهبتا") == "ذهبتا"
    assert arabic.inflect(woman, "his طائرة ورقية") == "طائرتها الورقية"
    assert arabic.inflect(man, "of شقيق أكبر") == f"شقيق {PLAIN[MAN.name]} الأكبر"
    assert arabic.inflect("blue", "acc f") == "زرقاء"
    assert arabic.inflect("brown", "acc m") == "بنيًا"
    assert arabic.inflect("librarian", "acc f") == "أمينة مكتبة"
    assert arabic.inflect("librarian", "") == "أمين المكتبة"
    assert arabic.inflect("bread", "acc") == "رغيفًا من الخبز"
    assert arabic.inflect(Clock(10, 45), "") == "الساعة الحادية عشرة إلا ربعًا صباحًا"
    assert arabic.inflect(Clock(12, 45), "") == "الساعة الواحدة إلا ربعًا ظهرًا"


def test_the_l_before_the_article_and_prefixes_before_digits():
    assert arabic.LANGUAGE.finish("تفرغ لالسباحة ولالليمون ل12") == "تفرغ للسباحة ولليمون لـ12"


def test_three_to_nine_never_precede_a_singular_in_documents():
    singular = "|".join(noun.one for noun in NOUNS.values() if noun.one != noun.several)
    small = "|".join({cardinal(n, feminine=f) for n in range(3, 10) for f in (True, False)})
    for number in range(600):
        _, text = document(WORLD, arabic.LANGUAGE, 0, number)
        assert not re.search(rf"(?<!\w)({small}) ({singular})(?!\w)", text), text
        assert text.count("«") == text.count("»")
