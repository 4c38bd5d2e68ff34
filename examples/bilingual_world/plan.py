"""Plans of documents: the content of a document, independent of its language."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

Slots = dict[str, Any]
"""Values for the placeholders of a sentence template, by the name of the placeholder."""
Reference = Literal["name", "full", "again", "i", "you"]
"""How a sentence refers to a person: first name, full name, pronoun, "I" or "you"."""


@dataclass(frozen=True)
class Person:
    """A person of the island. All fields except ``woman`` and ``age`` are identifiers."""

    name: str
    surname: str
    woman: bool
    age: int
    home: str
    job: str
    """The job. Empty for children."""
    food: str
    color: str
    hobby: str
    pet: str
    pet_name: str
    wish: str
    """The town that the person wants to visit."""
    friend: str = ""
    """The name of the best friend."""

    def with_friend(self, friend: str) -> "Person":
        """Return a copy of the person with the best friend set to ``friend``."""
        return replace(self, friend=friend)


@dataclass(frozen=True)
class Mention:
    """A reference to a person in a sentence."""

    person: Person
    how: Reference = "name"

    def __str__(self) -> str:
        return self.person.name


class Pair(NamedTuple):
    """Two people that a sentence refers to as "they"."""

    one: Person
    other: Person


class Count(NamedTuple):
    """A number of things of the same kind, such as three apples."""

    number: int
    thing: str


class Clock(NamedTuple):
    """A time of day on a 24-hour clock."""

    hour: int
    minute: int


class Sentence(NamedTuple):
    """A sentence or a clause: the key of its templates and the values for their placeholders."""

    key: str
    slots: Slots


class Spoken(NamedTuple):
    """Complete sentences that are quoted inside a sentence, as in direct speech."""

    sentences: tuple[Sentence, ...]


class Plan(NamedTuple):
    """The content of a document: its kind and its paragraphs, which are tuples of sentences."""

    kind: str
    paragraphs: tuple[tuple[Sentence, ...], ...]
