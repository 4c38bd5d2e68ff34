"""The English language: words, inflected forms, and the cleanup of rendered sentences."""

import re
from typing import Any

from examples.bilingual_world import lists
from examples.bilingual_world.data_files import read_table, read_templates
from examples.bilingual_world.language import Language
from examples.bilingual_world.plan import Clock, Count, Mention, Pair

_DATA = read_table("languages/en/words.toml")
_WORDS: dict[str, str] = _DATA["words"]
_PLURALS: dict[str, str] = _DATA["plurals"]
_PORTIONS: dict[str, tuple[str, str, str, bool]] = _DATA["portions"]
_SPOTS: dict[str, str] = _DATA["spots"]
_SMALL_NUMBERS: tuple[str, ...] = tuple(_DATA["small_numbers"])
_PHRASES: dict[str, str] = (
    _DATA["actions"]
    | {f"{job}.duty": words for job, words in _DATA["duties"].items()}
    | {f"{thing}.use": words for thing, words in _DATA["uses"].items()}
)
_PROPER = {*lists.WOMEN, *lists.MEN, *lists.SURNAMES, *lists.TOWNS, *lists.WEEKDAYS}
_PROPER |= {*lists.PET_NAMES} - {"biscuit_pet"}

_PRONOUNS = {
    True: {"he": "she", "his": "her", "him": "her", "himself": "herself"},
    False: {"he": "he", "his": "his", "him": "him", "himself": "himself"},
    "i": {"he": "I", "his": "my", "him": "me", "himself": "myself"},
    "you": {"he": "you", "his": "your", "him": "you", "himself": "yourself"},
}
_BE = {"i": ("am", "was"), "you": ("are", "were")}


def inflect(value: Any, form: str) -> str:
    """Return the English words for ``value`` in a grammatical form.

    The forms are:

    - person: ``of`` ("Lina's"), ``to`` ("Lina", "her"), a pronoun (``he``, ``his``, ``him``,
      ``himself``), ``+VERB`` ("Lina sings"), ``he+VERB`` ("she sings"), ``?`` ("does Lina"),
      ``be?`` ("is Lina");
    - noun: ``s`` ("apples", in general), ``a`` ("an apple"), ``+VERB`` ("apples fall"), ``?``
      ("do apples"), ``be?`` ("are apples");
    - action: ``ing`` ("singing");
    - spot: ``at`` ("at the market"), ``to`` ("to the market");
    - number, time of day: ``d`` (digits).
    """
    match value:
        case Mention():
            return _person(value, form)
        case Count(number, thing):
            return f"{_number(number)} {_noun(thing)[1 if number == 1 else 2]}"
        case Clock(hour, minute):
            return f"{hour}:{minute:02d}" if form == "d" else _clock(hour, minute)
        case Pair():
            return "they"
        case 0 if form == "answer":
            return "none"
        case int():
            return f"{value:,}" if form == "d" else _number(value)
    if form in ("at", "to") or value in lists.SPOTS:
        return _spot(value, form)
    if value in _PHRASES:
        return _participle(_PHRASES[value]) if form == "ing" else _PHRASES[value]
    return _thing(value, form)


def _person(who: Mention, form: str) -> str:
    person, how = who.person, who.how
    pronouns = _PRONOUNS[how if how in ("i", "you") else person.woman]
    plain = how in ("again", "i", "you")
    name = pronouns["he"] if plain else inflect(person.name, "")
    if how == "full":
        name = f"{name} {inflect(person.surname, '')}"
    if form.startswith("he+"):
        return f"{pronouns['he']} {_verb(form[3:], how)}"
    if form.startswith("+"):
        return f"{name} {_verb(form[1:], how)}"
    if form in pronouns:
        return pronouns[form]
    match form:
        case "of":
            return pronouns["his"] if plain else f"{name}'s" if name[-1] != "s" else f"{name}'"
        case "to":
            return pronouns["him"] if plain else name
        case "?":
            return f"{'do' if how in _BE else 'does'} {name}"
        case "be?":
            return f"{_BE.get(how, ('is',))[0]} {name}"
    return name


def _verb(verb: str, how: str = "") -> str:
    """Return ``verb`` in the form that agrees with its subject.

    The subject is "I" or "you" if ``how`` is ``i`` or ``you``, otherwise a third person.
    """
    if verb in ("be", "was"):
        return _BE.get(how, ("is", "was"))[verb == "was"]
    if how in _BE:
        return verb
    if verb == "have":
        return "has"
    if verb.endswith(("s", "sh", "ch", "x", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("y") and verb[-2] not in "aeiou" else f"{verb}s"


def _participle(phrase: str) -> str:
    verb, _, rest = phrase.partition(" ")
    stem = {"swim": "swimm"}.get(verb, verb[:-1] if verb[-1] == "e" else verb)
    return f"{stem}ing {rest}".rstrip()


def _noun(name: str) -> tuple[str, str, str, bool]:
    """Return the bare noun, the singular, the plural, and whether the noun takes a plural verb.

    The last value is for statements about the noun in general, such as "apples are sweet".
    """
    if name in _PORTIONS:
        return _PORTIONS[name]
    word = _WORDS.get(name, name.replace("_", " "))
    if word in _PLURALS:
        return word, word, _PLURALS[word], True
    plural = f"{word[:-1]}ies" if word.endswith("y") and word[-2] not in "aeiou" else f"{word}s"
    return word, word, plural, True


def _thing(name: str, form: str) -> str:
    word = _WORDS.get(name, name.replace("_", " "))
    if name in _PROPER:
        return _WORDS.get(name, name.title())
    if name in lists.FOODS or name in lists.ANIMALS or name in lists.THINGS:
        return _counted(name, form)
    return f"a {word}" if form == "answer" and name in ("fruit", "vegetable") else word


def _counted(name: str, form: str) -> str:
    bare, one, several, plural = _noun(name)
    general = several if plural and name not in _PORTIONS else bare
    if form == "+be":
        return f"{general} {'are' if plural else 'is'}"
    if form.startswith("+"):
        return f"{general} {form[1:] if plural else _verb(form[1:])}"
    return {
        "a": f"a {one}",
        "answer": f"a {one}" if name in lists.ANIMALS else general,
        "s": general,
        "?": f"{'do' if plural else 'does'} {general}",
        "be?": f"{'are' if plural else 'is'} {general}",
    }.get(form, bare)


def _spot(name: str, form: str) -> str:
    phrase = _SPOTS.get(name, f"at the {name.replace('_', ' ')}")
    preposition, _, place = phrase.partition(" ")
    return {"at": phrase, "to": f"to {place}", "answer": f"{preposition} {place}"}.get(form, place)


def _number(number: int) -> str:
    return _SMALL_NUMBERS[number] if number <= 20 else f"{number:,}"


def _clock(hour: int, minute: int) -> str:
    part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
    shown = _SMALL_NUMBERS[(hour - 1) % 12 + 1]
    match minute:
        case 0:
            text = f"{shown} o'clock"
        case 15:
            text = f"a quarter past {shown}"
        case 30:
            text = f"half past {shown}"
        case _:
            text = f"a quarter to {_SMALL_NUMBERS[hour % 12 + 1]}"
    return f"{text} {part}"


_FIRST = re.compile(r'(^"?|[.!?] "?|: ")([a-z])')
_SPACES = re.compile(r" +(?=[ .,!?])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio]|u(?!se|ni))")


def _finish(text: str) -> str:
    text = _ARTICLE.sub(r"\1n ", _SPACES.sub("", text))
    return _FIRST.sub(lambda match: match[1] + match[2].upper(), text)


LANGUAGE = Language(
    code="en",
    space=" ",
    templates=read_templates("en"),
    inflect=inflect,
    finish=_finish,
)
