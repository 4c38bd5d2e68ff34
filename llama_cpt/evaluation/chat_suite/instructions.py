"""Checks of whether an answer follows an instruction, such as a number of words or a format."""

from collections.abc import Callable, Mapping, Sequence
import json
import re
from typing import Any

from llama_cpt.evaluation.chat_suite.languages import check_language
from llama_cpt.evaluation.scores import RIGHT_LANGUAGE

_FENCE = re.compile(r"^```\w*\n(.*?)\n?```$", re.DOTALL)
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+(?:['’\-][^\W_{_IDEOGRAPHS}]+)*")
# A full stop between digits or before a letter does not end a sentence.
_SENTENCE_END = re.compile(r"[。！？]+|[.!?]+(?=[\s\"'”’)]|$)")
# Neither a horizontal rule, nor bold text, nor a decimal number begins an item.
_BULLET = re.compile(
    r"^[ \t]*(?:[-•·](?!--)[ \t]*|\*[ \t]+|\d+[.)、](?!\d)[ \t]*)[^\s]", re.MULTILINE
)


def follows(answer: str, checks: Sequence[Mapping[str, Any]], language: str) -> bool:
    """Return whether ``answer`` passes all ``checks``; an empty answer never passes.

    A check is an object with the name of a function in ``CHECKS`` as ``check``, and the arguments
    of the function. ``language`` is the language of the instruction.
    """
    answer = answer.strip()
    return bool(answer) and all(
        CHECKS[check["check"]](answer, **{k: v for k, v in check.items() if k != "check"})
        for check in checks
    )


def count_units(text: str) -> int:
    """Return the number of words; a Chinese or Japanese character counts as a word."""
    return len(_UNIT.findall(text))


def words(answer: str, at_least: int = 0, at_most: int = 1 << 31) -> bool:
    """Return whether the number of words is in a range; see ``count_units``."""
    return at_least <= count_units(answer) <= at_most


def sentences(answer: str, at_least: int = 1, at_most: int = 1 << 31) -> bool:
    """Return whether the number of sentences is in a range.

    Text after the last end of a sentence counts as a sentence.
    """
    parts = _SENTENCE_END.split(answer)
    return at_least <= sum(bool(_UNIT.search(part)) for part in parts) <= at_most


def json_object(answer: str, keys: Sequence[str]) -> bool:
    """Return whether the answer is a JSON object with exactly the keys ``keys``."""
    value = _json(answer)
    return isinstance(value, dict) and sorted(value) == sorted(keys)


def json_list(answer: str, items: int) -> bool:
    """Return whether the answer is a JSON array of ``items`` strings."""
    value = _json(answer)
    return (
        isinstance(value, list)
        and len(value) == items
        and all(isinstance(item, str) and item for item in value)
    )


def bullets(answer: str, items: int) -> bool:
    """Return whether the answer has exactly ``items`` lines that begin with a bullet or number."""
    return len(_BULLET.findall(answer)) == items


def includes(answer: str, phrases: Sequence[str], times: int = 1) -> bool:
    """Return whether the answer contains each of ``phrases`` at least ``times`` times."""
    return all(_occurrences(answer, phrase) >= times for phrase in phrases)


def excludes(answer: str, phrases: Sequence[str]) -> bool:
    """Return whether the answer contains none of ``phrases``."""
    return not any(_occurrences(answer, phrase) for phrase in phrases)


def uppercase(answer: str) -> bool:
    """Return whether the answer has letters with case, and all of them are uppercase."""
    return answer.isupper()


def lowercase(answer: str) -> bool:
    """Return whether the answer has letters with case, and all of them are lowercase."""
    return answer.islower()


def starts_with(answer: str, phrase: str) -> bool:
    """Return whether the answer begins with ``phrase``."""
    return answer.startswith(phrase)


def ends_with(answer: str, phrase: str) -> bool:
    """Return whether the answer ends with ``phrase``."""
    return answer.endswith(phrase)


def in_language(answer: str, language: str) -> bool:
    """Return whether the answer is in ``language``, which can differ from that of the prompt."""
    return bool(check_language(answer, language)[RIGHT_LANGUAGE])


CHECKS: dict[str, Callable[..., bool]] = {
    check.__name__: check
    for check in (
        words,
        sentences,
        json_object,
        json_list,
        bullets,
        includes,
        excludes,
        uppercase,
        lowercase,
        starts_with,
        ends_with,
        in_language,
    )
}
"""Checks by the name that data files use."""


def _json(answer: str) -> Any:
    """Return the JSON value of the answer, or None; a code fence around the value is allowed."""
    fenced = _FENCE.match(answer)
    try:
        return json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        return None


def _occurrences(answer: str, phrase: str) -> int:
    """Count ``phrase``, ignoring case; a phrase of letters with case must be a whole word."""
    pattern = re.escape(phrase)
    if phrase.isascii() and phrase[0].isalnum() and len(phrase) > 1:
        pattern = rf"(?<![^\W_{_IDEOGRAPHS}]){pattern}(?![^\W_{_IDEOGRAPHS}])"
    return len(re.findall(pattern, answer, re.IGNORECASE))
