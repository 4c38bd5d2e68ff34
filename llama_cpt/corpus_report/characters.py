"""Normalized text as arrays of code points, with a script for each code point.

The normalization is NFKC with folded case. All characters except letters, marks and numbers become
spaces. Most code points are normalized with a table. Text that contains other code points, such as
combining marks, is normalized with ``unicodedata`` first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
import re
import sys
import unicodedata

from fontTools.unicodedata import Scripts, script_name
from jaxtyping import UInt32
import numpy as np

SPACE, SEPARATOR = 32, 0
"""Code points between words and between texts."""
POINTS = sys.maxunicode + 1
UNSPACED = ("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar")
"""Scripts that are written without spaces between words."""
# Ranges with all assigned code points, except those for private use.
_ASSIGNED = (range(0x34000), range(0xE0000, 0xE0200))
# Letters that normalization does not change. The table is computed faster without them.
_UNCHANGED = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xAC00, 0xD7A4))

Points = UInt32[np.ndarray, " characters"]


@dataclass(frozen=True)
class _Tables:
    """Properties of all code points."""

    folded: np.ndarray
    """uint32: the normalized code point; SPACE for characters between words."""
    needs_text: np.ndarray
    """bool: true if a text with the code point must be normalized with ``unicodedata``."""
    letters: np.ndarray
    """bool: letters and marks."""
    scripts: np.ndarray
    """uint8: index of the script in ``names``."""
    names: tuple[str, ...]
    unspaced: np.ndarray
    """bool: characters of scripts in UNSPACED."""
    ignored: re.Pattern[str]
    """Format characters, such as soft hyphens, which are removed."""


def normalize(texts: Sequence[str]) -> Points:
    """Return the normalized code points of ``texts``, each followed by a SEPARATOR."""
    tables = _tables()
    points = _points(texts)
    special = np.flatnonzero(tables.needs_text[points])
    if special.size:
        ends = np.flatnonzero(points == SEPARATOR)
        texts = list(texts)
        for number in np.unique(np.searchsorted(ends, special)):
            plain = tables.ignored.sub("", unicodedata.normalize("NFKC", texts[number]))
            texts[number] = unicodedata.normalize("NFKC", plain.casefold())
        points = _points(texts)
    return tables.folded[points]


def script_counts(points: Points) -> dict[str, int]:
    """Return the number of letters in each script that occurs in ``points``."""
    tables = _tables()
    counts = np.bincount(
        tables.scripts[points[tables.letters[points]]], minlength=len(tables.names)
    )
    return {name: int(n) for name, n in zip(tables.names, counts, strict=True) if n}


def is_letter(points: Points) -> np.ndarray:
    """Return for each code point whether it is a letter or a mark."""
    return _tables().letters[points]


def is_unspaced(points: Points) -> np.ndarray:
    """Return for each code point whether its script is written without spaces."""
    return _tables().unspaced[points]


def _points(texts: Sequence[str]) -> Points:
    joined = "".join(f"{text.replace(chr(SEPARATOR), ' ')}{chr(SEPARATOR)}" for text in texts)
    return np.frombuffer(joined.encode("utf-32-le"), np.dtype("<u4"))


@cache
def _tables() -> _Tables:
    """Compute the tables from the Unicode data of Python and of fontTools."""
    starts = np.array([*Scripts.RANGES, POINTS])
    names = sorted({script_name(value) for value in Scripts.VALUES})
    index = np.array([names.index(script_name(value)) for value in Scripts.VALUES], np.uint8)
    scripts = np.repeat(index, np.diff(starts))
    folded = np.full(POINTS, SPACE, np.uint32)
    needs_text, letters = np.zeros(POINTS, bool), np.zeros(POINTS, bool)
    ignored = []
    for point in (point for group in _ASSIGNED for point in group):
        character = chr(point)
        category = unicodedata.category(character)
        if category in ("Cn", "Co", "Cs"):
            continue
        letters[point] = category[0] in "LM"
        if any(point in unchanged for unchanged in _UNCHANGED):
            folded[point] = point
            continue
        if category == "Cf":
            ignored.append(character)
            needs_text[point] = True
        folded[point], special = _fold(character)
        needs_text[point] |= special
    folded[SEPARATOR] = SEPARATOR
    return _Tables(
        folded,
        needs_text,
        letters,
        scripts,
        tuple(names),
        np.isin(scripts, [names.index(name) for name in UNSPACED]) & letters,
        re.compile(f"[{''.join(map(re.escape, ignored))}]"),
    )


def _fold(character: str) -> tuple[int, bool]:
    """Return the code point of a normalized character, and whether it depends on other text."""
    normal = unicodedata.normalize("NFKC", character).casefold()
    normal = unicodedata.normalize("NFKC", normal)
    words = [one for one in normal if unicodedata.category(one)[0] in "LMN"]
    kept = ord(character) if unicodedata.category(character)[0] in "LMN" else SPACE
    if not words:
        return SPACE, False
    # A mark, or the second part of a Hangul syllable, can form one character with the previous one.
    hangul = 0x1161 <= ord(character) <= 0x11C2
    joins = hangul or unicodedata.combining(character) or ord(character) in _second_parts()
    if joins or len(normal) > 1:
        return kept, True
    return ord(normal), False


@cache
def _second_parts() -> frozenset[int]:
    """Return the characters that form one character with the previous one in NFC.

    Some vowel signs, for example of Bengali and Tamil, are not combining characters.
    """
    parts = set()
    for point in range(0x20000):
        found = unicodedata.decomposition(chr(point)).split()
        if len(found) == 2 and not found[0].startswith("<"):
            first, second = (chr(int(one, 16)) for one in found)
            if unicodedata.normalize("NFC", first + second) == chr(point):
                parts.add(ord(second))
    return frozenset(parts)
