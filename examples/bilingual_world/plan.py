"""What a document says, before any language says it."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

Slots = dict[str, Any]


@dataclass(frozen=True)
class Person:
    """Somebody of the island; every field but ``woman`` and ``age`` is an identifier."""

    name: str
    surname: str
    woman: bool
    age: int
    home: str
    job: str
    """Empty for children."""
    food: str
    colour: str
    hobby: str
    pet: str
    pet_name: str
    wish: str
    """The town that the person wants to see."""
    friend: str = ""

    def with_friend(self, friend: str) -> "Person":
        """The same person with a best friend."""
        return replace(self, friend=friend)


@dataclass(frozen=True)
class Mention:
    """A person as the sentence speaks of them: by name, full name, pronoun, or as I or you."""

    person: Person
    how: Literal["name", "full", "again", "i", "you"] = "name"

    def __str__(self) -> str:
        return self.person.name


class Pair(NamedTuple):
    """Two people together: they."""

    one: Person
    other: Person


class Count(NamedTuple):
    """So many of a thing."""

    number: int
    thing: str


class Clock(NamedTuple):
    """A time of day."""

    hour: int
    minute: int


class Say(NamedTuple):
    """One sentence, or clause inside another: which one, and what stands in its slots."""

    key: str
    slots: Slots


class Spoken(NamedTuple):
    """Sentences that stand whole inside another, as in speech."""

    sentences: tuple[Say, ...]


class Plan(NamedTuple):
    """A document: its kind, and paragraphs of sentences."""

    kind: str
    paragraphs: tuple[tuple[Say, ...], ...]
