"""Arabic words for the identifiers of the world, read from ``languages/ar/*.toml``."""

from dataclasses import dataclass

from examples.bilingual_world.data_files import read_table


@dataclass(frozen=True)
class Noun:
    """An Arabic noun that can be counted."""

    one: str
    """The singular."""
    several: str
    """The plural."""
    whole: str
    """The noun in general, with the article, such as "the bread"."""
    tail: str = ""
    """Words that follow the singular or the plural, such as " of bread" in "a loaf of bread"."""

    @property
    def feminine(self) -> bool:
        """True if the noun is feminine, so that its verbs and adjectives are feminine too."""
        return self.one.split()[0].endswith("ة") or self.one == "رجل"


def definite(phrase: str) -> str:
    """Return ``phrase`` with the article added to every word that does not have it.

    A compound has ``~`` between its two words, and the article goes to the second of them.
    """
    return " ".join(map(_with_article, phrase.split()))


def _with_article(word: str) -> str:
    if "~" in word:
        return word.replace("~", " ال")
    return word if word.startswith("ال") else f"ال{word}"


_WORDS = read_table("languages/ar/words.toml")
_NOUNS = read_table("languages/ar/nouns.toml")

PLAIN: dict[str, str] = (
    read_table("languages/ar/names.toml")
    | _WORDS["words"]
    | _WORDS["actions"]
    | {f"{job}.duty": words for job, words in _WORDS["duties"].items()}
    | {f"{thing}.use": words for thing, words in _WORDS["uses"].items()}
)
ADJECTIVES: dict[str, str] = _WORDS["adjectives"]
FEMININE_COLORS = {ADJECTIVES[name]: word for name, word in _WORDS["feminine_colors"].items()}
SPOTS: dict[str, tuple[str, str]] = {
    name: (preposition, place) for name, (preposition, place) in _WORDS["spots"].items()
}
NOUNS = (
    {name: Noun(one, more, definite(one)) for name, (one, more) in _NOUNS["counted"].items()}
    | {name: Noun(one, more, definite(w)) for name, (w, one, more) in _NOUNS["foods"].items()}
    | {
        name: Noun(one, more, definite(whole), f" من {definite(whole)}")
        for name, (whole, one, more) in _NOUNS["portions"].items()
    }
)
UNITS: tuple[str, ...] = tuple(_WORDS["units"])
"""The numbers from zero to ten, in the form that counts masculine nouns."""
TENS: tuple[str, ...] = tuple(_WORDS["tens"])
"""The tens from twenty to ninety, without their case endings."""
HOURS: tuple[str, ...] = tuple(_WORDS["hours"])
"""The names of the twelve hours of a clock, starting with one o'clock."""
