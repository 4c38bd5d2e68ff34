"""Arabic words for the identifiers of the world, from ``languages/ar/*.toml``."""

from dataclasses import dataclass

from examples.bilingual_world.data_files import read_table


@dataclass(frozen=True)
class Noun:
    """A noun that can be counted."""

    one: str
    several: str
    whole: str
    """The general sense, with the article."""
    tail: str = ""
    """The words after ``one`` and ``several``, as in "a loaf of bread"."""

    @property
    def feminine(self) -> bool:
        """Whether verbs and adjectives agree in the feminine."""
        return self.one.split()[0].endswith("ة") or self.one == "رجل"


def definite(phrase: str) -> str:
    """Return ``phrase`` with the article on every word that lacks it."""
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
"""Zero to ten, masculine."""
TENS: tuple[str, ...] = tuple(_WORDS["tens"])
"""Twenty to ninety, without their endings."""
HOURS: tuple[str, ...] = tuple(_WORDS["hours"])
"""The hours of the clock, from one."""
