"""The Chinese language: words, measure words, numbers, and the cleanup of rendered sentences."""

import re
from typing import Any

from examples.bilingual_world import lists
from examples.bilingual_world.data_files import read_table, read_templates
from examples.bilingual_world.language import Language
from examples.bilingual_world.plan import Clock, Count, Mention, Pair

_DIGITS = "零一二三四五六七八九"
_WORDS = read_table("languages/zh/words.toml")
_PLAIN: dict[str, str] = (
    read_table("languages/zh/names.toml")
    | _WORDS["words"]
    | {f"{job}.duty": words for job, words in _WORDS["duties"].items()}
    | {f"{thing}.use": words for thing, words in _WORDS["uses"].items()}
)
_PLACES: dict[str, tuple[str, str]] = _WORDS["spots"]
_MEASURED: dict[str, tuple[str, str]] = read_table("languages/zh/nouns.toml")


def inflect(value: Any, form: str) -> str:
    """Return the Chinese words for ``value`` in a grammatical form.

    The forms are:

    - person: ``of`` ("Lina's"), ``he`` (the pronoun), ``his`` (the possessive pronoun);
    - noun: ``a`` ("an apple"), ``the`` ("that apple"), ``m`` (the measure word);
    - count of things: ``m`` (the measure word of the things);
    - spot: ``at`` ("at the market");
    - number: ``d`` (digits), ``plain`` (the form for counting, without a measure word).
    """
    match value:
        case Mention():
            return _person(value, form)
        case Count(number, "year" | "day" as unit):
            return f"{_measured_number(number)}{'岁' if unit == 'year' else '天'}"
        case Count(number, thing):
            measure, noun = _MEASURED[thing]
            return measure if form == "m" else f"{_measured_number(number)}{measure}{noun}"
        case Clock(hour, minute):
            return f"{hour}:{minute:02d}" if form == "d" else _clock(hour, minute)
        case int():
            return _integer(value, form)
        case Pair(one, other):
            return "她们" if one.woman and other.woman else "他们"
    if value in _PLACES:
        place, side = _PLACES[value]
        return f"在{place}{side}" if form in ("at", "answer") else place
    if value in _MEASURED:
        return _noun(*_MEASURED[value], form)
    return f"{_PLAIN[value]}部" if form == "answer" and value in lists.DIRECTIONS else _PLAIN[value]


def _person(who: Mention, form: str) -> str:
    pronoun = {"i": "我", "you": "你"}.get(who.how, "她" if who.person.woman else "他")
    plain = who.how in ("again", "i", "you")
    name = pronoun if plain else _PLAIN[who.person.name]
    if who.how == "full":
        name = f"{name}·{_PLAIN[who.person.surname]}"
    return {"of": f"{name}的", "he": pronoun, "his": f"{pronoun}的"}.get(form, name)


def _noun(measure: str, noun: str, form: str) -> str:
    return {"a": f"一{measure}{noun}", "the": f"那{measure}{noun}", "m": measure}.get(form, noun)


def _integer(number: int, form: str) -> str:
    """Return an integer in words, or in digits if ``form`` is ``d`` or the integer exceeds 9999.

    The number 2 is 二 if ``form`` is ``plain``, and 两, as before a measure word, otherwise.
    """
    if form == "d" or number > 9999:
        return str(number)
    return _number(number) if form == "plain" else _measured_number(number)


def _measured_number(number: int) -> str:
    return "两" if number == 2 else _number(number)


def _number(number: int) -> str:
    """Return an integer from 0 to 9999 in words, such as 一百零五, 二十三 or 十二."""
    if number < 10:
        return _DIGITS[number]
    words, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        if digit:
            words += ("零" if gap and words else "") + _DIGITS[digit] + name
        gap = not digit
    return words.removeprefix("一") if 10 <= number < 20 else words


def _clock(hour: int, minute: int) -> str:
    part = "上午" if hour < 12 else "中午" if hour == 12 else "下午" if hour < 18 else "晚上"
    part = "早上" if hour < 9 else part
    shown = _measured_number((hour - 1) % 12 + 1)
    return f"{part}{shown}点" + {0: "", 15: "一刻", 30: "半", 45: "三刻"}[minute]


_DOUBLED = re.compile(r"([，。！？：；、])\1+")


def _finish(text: str) -> str:
    return _DOUBLED.sub(r"\1", text)


LANGUAGE = Language(
    code="zh",
    space="",
    templates=read_templates("zh"),
    inflect=inflect,
    finish=_finish,
)
