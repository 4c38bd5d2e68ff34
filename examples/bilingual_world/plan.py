"""The plan of a document: its content before it is rendered in a language."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

Slots = dict[str, Any]


@dataclass(frozen=True)
class Person:
    """A person; all fields except ``woman`` and ``age`` are identifiers."""

    name: str
    surname: str
    woman: bool
    age: int
    home: str
    job: str
    """The job, empty for children."""
    food: str
    color: str
    hobby: str
    pet: str
    pet_name: str
    wish: str
    """The town that the person wants to visit."""
    friend: str = ""

    def with_friend(self, friend: str) -> "Person":
        """Return a copy with a best friend."""
        return replace(self, friend=friend)


@dataclass(frozen=True)
class Mention:
    """A person in a sentence: by name, full name, pronoun (``again``), or as I or you."""

    person: Person
    how: Literal["name", "full", "again", "i", "you"] = "name"

    def __str__(self) -> str:
        return self.person.name


class Pair(NamedTuple):
    """Two people, for the pronoun "they"."""

    one: Person
    other: Person


class Count(NamedTuple):
    """A number of things."""

    number: int
    thing: str


class Clock(NamedTuple):
    """A time of day."""

    hour: int
    minute: int


class Sentence(NamedTuple):
    """A sentence, or a clause of another: the key of its templates and the values of its slots."""

    key: str
    slots: Slots


class Spoken(NamedTuple):
    """Complete sentences inside another, such as direct speech."""

    sentences: tuple[Sentence, ...]


class Plan(NamedTuple):
    """A document: its kind and its paragraphs of sentences."""

    kind: str
    paragraphs: tuple[tuple[Sentence, ...], ...]
