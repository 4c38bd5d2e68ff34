"""Rendering of document plans as text with the sentence templates of a language.

A template is ordinary text with two kinds of marks. ``[this|or this|]`` is a random choice.
``{slot}`` or ``{slot:form}`` is a placeholder, called a slot, for a value of the sentence. The form
selects a grammatical form of the value, such as the plural. A form can contain a slot so that words
agree: ``{color:{thing:g}}`` is the color in the gender of the thing. Each language defines its
forms in a function ``inflect``, which receives the value and the form.

To add a language, put its words and templates in ``languages/CODE/``, define ``LANGUAGE`` in a
module as english.py does, and add this ``LANGUAGE`` to documents.py.
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
    """A language in which documents are rendered."""

    code: str
    """The language's code in file names, such as ``en``."""
    space: str
    """The separator between two sentences. Empty for Chinese."""
    templates: Mapping[str, tuple[str, ...]]
    """Sentence templates by key. All languages have the same keys."""
    inflect: Callable[[Any, str], str]
    """A function that receives a value and a form and returns words."""
    finish: Callable[[str], str]
    """A function that corrects capitals, articles and spaces in a rendered sentence."""


class _Slot:
    """A value for ``str.format_map`` that passes its format specification to ``show``."""

    def __init__(self, show: Callable[[str], str]) -> None:
        self.show = show

    def __format__(self, form: str) -> str:
        return self.show(form)


def render_plan(plan: Plan, language: Language, rng: random.Random) -> str:
    """Return the text of a plan, one line per paragraph; ``rng`` selects the wordings."""
    return "\n".join(
        language.space.join(render_sentence(sentence, language, rng) for sentence in paragraph)
        for paragraph in plan.paragraphs
        if paragraph
    )


def render_sentence(sentence: Sentence, language: Language, rng: random.Random) -> str:
    """Return the text of one complete sentence; ``rng`` selects the wording."""
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
