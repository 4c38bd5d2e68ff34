"""How a plan becomes text: templates with alternatives and slots.

A template is ordinary text with ``[this|or this|]`` for a choice and ``{slot}`` or ``{slot:form}``
for a value; a form may hold a slot of its own: ``{colour:{thing:g}}``, to agree in gender. What the
forms are is the language's own matter: its ``say`` is given the value and the form. To add a
language, write one file that defines ``LANGUAGE`` (see english.py) and name it in documents.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
import random
import re
from typing import Any

from examples.bilingual_world.plan import Plan, Say, Spoken

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Language:
    """One tongue of the island."""

    code: str
    """As in file names: ``en``."""
    space: str
    """What stands between two sentences."""
    sentences: Mapping[str, tuple[str, ...]]
    """Templates by key; the same keys in every language."""
    say: Callable[[Any, str], str]
    """(value, form) -> words."""
    finish: Callable[[str], str]
    """A whole sentence as it is written: capitals, articles, spaces."""


class _Slot:
    """Lets ``str.format`` ask the language for a form."""

    def __init__(self, show: Callable[[str], str]) -> None:
        self.show = show

    def __format__(self, form: str) -> str:
        return self.show(form)


def tell(plan: Plan, language: Language, rng: random.Random) -> str:
    """The document that says ``plan``; ``rng`` picks among ways to say it."""
    return "\n".join(
        language.space.join(sentence(say, language, rng) for say in paragraph)
        for paragraph in plan.paragraphs
        if paragraph
    )


def sentence(say: Say, language: Language, rng: random.Random) -> str:
    """One whole sentence."""
    return language.finish(_clause(say, language, rng))


def _clause(say: Say, language: Language, rng: random.Random) -> str:
    template = rng.choice(language.sentences[say.key])
    while "[" in template:
        template = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    slots = {
        name: _Slot(partial(_value, value, language, rng)) for name, value in say.slots.items()
    }
    return template.format_map(slots)


def _value(value: Any, language: Language, rng: random.Random, form: str) -> str:
    if isinstance(value, Say):
        return _clause(value, language, rng)
    if isinstance(value, Spoken):
        return language.space.join(sentence(s, language, rng) for s in value.sentences)
    return language.say(value, form)
