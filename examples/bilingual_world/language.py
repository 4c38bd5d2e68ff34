"""The rendering of plans as text: sentence templates with alternatives and slots.

A template is ordinary text with ``[this|or this|]`` for a choice and ``{slot}`` or ``{slot:form}``
for a value; a form may contain a slot: ``{color:{thing:g}}``, to agree in gender. Each language
defines its forms: its ``inflect`` receives the value and the form. To add a language, put its words
and templates in ``languages/CODE/``, define ``LANGUAGE`` in a module (see english.py), and add it
to documents.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
import random
import re
from typing import Any

from examples.bilingual_world.plan import Plan, Sentence, Spoken

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Language:
    """A language of the world."""

    code: str
    """The code in file names, such as ``en``."""
    space: str
    """The separator of sentences."""
    templates: Mapping[str, tuple[str, ...]]
    """Sentence templates by key; all languages have the same keys."""
    inflect: Callable[[Any, str], str]
    """A function from a value and a form to words."""
    finish: Callable[[str], str]
    """A function that finishes a sentence: capitals, articles, spaces."""


class _Slot:
    """A value whose format specification is a form, for ``str.format_map``."""

    def __init__(self, show: Callable[[str], str]) -> None:
        self.show = show

    def __format__(self, form: str) -> str:
        return self.show(form)


def render_plan(plan: Plan, language: Language, rng: random.Random) -> str:
    """Return the text of a plan; ``rng`` chooses among the wordings."""
    return "\n".join(
        language.space.join(render_sentence(sentence, language, rng) for sentence in paragraph)
        for paragraph in plan.paragraphs
        if paragraph
    )


def render_sentence(sentence: Sentence, language: Language, rng: random.Random) -> str:
    """Return the text of one complete sentence."""
    return language.finish(_clause(sentence, language, rng))


def _clause(sentence: Sentence, language: Language, rng: random.Random) -> str:
    template = rng.choice(language.templates[sentence.key])
    while "[" in template:
        template = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    slots = {
        name: _Slot(partial(_value, value, language, rng)) for name, value in sentence.slots.items()
    }
    return template.format_map(slots)


def _value(value: Any, language: Language, rng: random.Random, form: str) -> str:
    if isinstance(value, Sentence):
        return _clause(value, language, rng)
    if isinstance(value, Spoken):
        return language.space.join(render_sentence(s, language, rng) for s in value.sentences)
    return language.inflect(value, form)
