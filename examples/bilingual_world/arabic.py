"""The Arabic language: inflected forms of words, and the cleanup of rendered sentences."""

import re
from typing import Any

from examples.bilingual_world import lists
from examples.bilingual_world.arabic_numbers import accusative, cardinal, counted
from examples.bilingual_world.arabic_words import (
    ADJECTIVES,
    FEMININE_COLORS,
    HOURS,
    NOUNS,
    PLAIN,
    SPOTS,
    definite,
)
from examples.bilingual_world.data_files import read_templates
from examples.bilingual_world.language import Language
from examples.bilingual_world.plan import Clock, Count, Mention, Pair

# The Arabic for "he", "to him" and "his". The key is the speaker or listener, or whether the
# person is a woman.
_PRONOUNS = {
    True: ("هي", "لها", "ها"),
    False: ("هو", "له", "ه"),
    "i": ("أنا", "لي", "ي"),
    "you": ("أنت", "لك", "ك"),
}


def inflect(value: Any, form: str) -> str:
    """Return the Arabic words for ``value`` in a grammatical form.

    A form with slashes lists alternatives, such as ``he did/she did``. The function returns the
    alternative that agrees with the person, the pair or the noun. For a person, ``/I did`` can
    follow, and then ``/you (m.) did/you (f.) did``. The forms without slashes are:

    - person: ``g`` (the gender, m or f), ``top`` (the name or a pronoun), ``to`` ("to Lina"),
      ``of WORD`` ("Lina's WORD"), ``his WORD`` ("her WORD");
    - noun: ``a`` (singular), ``acc`` (singular in the accusative), ``s`` (the noun in general),
      ``one`` (singular without the words after it), ``g`` (the gender), ``id`` (the identifier);
    - job, feeling, color: ``a`` (indefinite) or ``acc`` (accusative), followed by ``m`` or ``f``;
    - count: ``acc`` or ``gen`` (the case);
    - number: ``d`` (digits), ``NOUN`` ("three books"), ``acc NOUN``, ``legs`` ("with legs");
    - spot: ``at`` (the spot with its preposition).
    """
    match value:
        case Mention():
            return _person(value, form)
        case Pair(one, other):
            return _agreed(form, feminine=one.woman and other.woman)
        case Count(number, thing) if form in ("", "acc", "gen"):
            return counted(number, NOUNS[thing], form)
        case Count(_, thing):
            return _noun(thing, form)
        case Clock(hour, minute):
            return f"{hour}:{minute:02d}" if form == "d" else _clock(hour, minute)
        case int():
            return _number(value, form)
    if value in ADJECTIVES:
        return _adjective(ADJECTIVES[value], form)
    if value in NOUNS:
        return _noun(value, form)
    if value in SPOTS:
        return " ".join(SPOTS[value]) if form in ("at", "answer") else SPOTS[value][1]
    return PLAIN[value]


def _agreed(ways: str, *, feminine: bool) -> str:
    return ways.split("/")[feminine]


def _person(who: Mention, form: str) -> str:
    person, how = who.person, who.how
    he, to, his = _PRONOUNS[how if how in ("i", "you") else person.woman]
    name = "" if how in ("again", "i", "you") else PLAIN[person.name]
    if how == "full":
        name = f"{name} {PLAIN[person.surname]}"
    kind, _, word = form.partition(" ")
    if "/" in form:
        return _conjugated(form.split("/"), who)
    if kind in ("of", "his"):
        return _owned(word, name if kind == "of" else "", his)
    match form:
        case "g":
            return "f" if person.woman else "m"
        case "top":
            return name or he
        case "to":
            return f"ل{name}" if name else to
    return name


def _conjugated(ways: list[str], who: Mention) -> str:
    """Return the alternative that agrees with ``who``.

    The order of ``ways`` is he, she, I, you (m.), you (f.). The last two or three can be missing.
    """
    if who.how == "i" and len(ways) > 2:
        return ways[2]
    return ways[3 + who.person.woman if who.how == "you" and len(ways) > 3 else who.person.woman]


def _owned(phrase: str, name: str, suffix: str) -> str:
    """Return ``phrase`` with its owner after the first word.

    The owner is ``name``, or the pronoun ``suffix`` if ``name`` is empty. The words after the owner
    are adjectives and get the article.
    """
    head, *rest = phrase.split(" ")
    stem = f"{head[:-1]}ت" if head.endswith("ة") else head
    return " ".join([f"{head} {name}" if name else f"{stem}{suffix}", *map(definite, rest)])


def _noun(name: str, form: str) -> str:
    noun = NOUNS[name]
    if "/" in form:
        return _agreed(form, feminine=noun.feminine)
    if form == "answer":
        form = "a" if name in lists.ANIMALS else "s"
    return {
        "a": f"{noun.one}{noun.tail}",
        "one": noun.one,
        "acc": f"{accusative(noun.one)}{noun.tail}",
        "s": definite(noun.several) if name in lists.THINGS else noun.whole,
        "g": "f" if noun.feminine else "m",
        "id": name,
    }.get(form, noun.whole)


def _adjective(masculine: str, form: str) -> str:
    """Return an adjective in the gender and case of ``form``, which has words such as ``acc f``.

    The word ``f`` selects the feminine. Without ``a`` and ``acc``, the adjective is definite.
    """
    words, wanted = masculine, form.split()
    if "f" in wanted:
        head, mark, tail = masculine.partition("~")
        words = FEMININE_COLORS.get(masculine, f"{head}ة{mark}{tail}")
    if "acc" in wanted:
        words = accusative(words)
    elif "a" not in wanted:
        words = definite(words)
    return words.replace("~", " ")


def _number(number: int, form: str) -> str:
    if form == "d":
        return str(number)
    if form == "legs":
        return f"ب{counted(number, NOUNS['leg'], 'gen')}" if number else "بلا أرجل"
    words = form.split()
    case = words[0] if words and words[0] in ("acc", "gen") else ""
    if words and words[-1] in NOUNS:
        return counted(number, NOUNS[words[-1]], case)
    return cardinal(number, case) if number < 100 else str(number)


def _clock(hour: int, minute: int) -> str:
    if hour == 12:
        part = "ظهرًا"
    else:
        part = "صباحًا" if hour < 12 else "بعد الظهر" if hour < 18 else "مساءً"
    past = {0: "", 15: " والربع", 30: " والنصف", 45: " إلا ربعًا"}[minute]
    return f"الساعة {HOURS[(hour - 1 + minute // 45) % 12]}{past} {part}"


_SPACES = re.compile(r" +(?=[ .،؛؟!:»]|$)|^ +", re.MULTILINE)
# The preposition li- (to, for) and the article al- merge into lil-.
_FOR_THE = re.compile(r"\b(و?)لالل?(?=\w)")
_BEFORE_DIGITS = re.compile(r"\b(و?[بل])(?=\d)")
_DOUBLED_STOP = re.compile(r"([.؟!]»)\.")


def _finish(text: str) -> str:
    text = _FOR_THE.sub(r"\1لل", _SPACES.sub("", text))
    return _DOUBLED_STOP.sub(r"\1", _BEFORE_DIGITS.sub(r"\1ـ", text))


LANGUAGE = Language(
    code="ar",
    space=" ",
    templates=read_templates("ar"),
    inflect=inflect,
    finish=_finish,
)
