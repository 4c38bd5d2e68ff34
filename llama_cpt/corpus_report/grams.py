"""Hashes of all n-grams of many texts, computed with NumPy.

An n-gram is a sequence of words. In scripts without spaces between words, it is a sequence of
characters, without spaces and punctuation. The hash of a sequence is a polynomial modulo 2^64 over
the mixed values of its items; a prefix sum gives the hash of every sequence.
"""

from dataclasses import dataclass
from functools import cache

from jaxtyping import Int64, UInt64
import numpy as np

from llama_cpt.corpus_report.characters import SEPARATOR, SPACE, Points, is_letter, is_unspaced

_BASE = 0x9E3779B97F4A7C15
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class Items:
    """The words, or the characters of scripts without spaces, of several texts."""

    text: Int64[np.ndarray, " items"]
    """Index of the text that contains the item; ascending."""
    sums: UInt64[np.ndarray, " items_and_one"]
    """Sums of the weighted values of all items before each item."""
    counted: Int64[np.ndarray, " items_and_one"]
    """Number of words with a letter, or of characters of scripts without spaces, before each
    item."""
    is_words: bool

    def grams(self, size: int) -> tuple[Int64[np.ndarray, " n"], UInt64[np.ndarray, " n"]]:
        """Return the first item and the hash of each n-gram of ``size`` items in one text.

        At least half of the words of an n-gram contain a letter, so that sequences of numbers are
        not n-grams. An n-gram of characters contains at least one character of a script without
        spaces.
        """
        least = size // 2 if self.is_words else 1
        starts = np.arange(max(len(self.text) - size + 1, 0))
        valid = self.text[: len(starts)] == self.text[size - 1 :]
        valid &= self.counted[size:] - self.counted[: len(starts)] >= least
        starts = starts[valid]
        return starts, self.hashes(starts, size)

    def hashes(self, starts: Int64[np.ndarray, " n"], size: int) -> UInt64[np.ndarray, " n"]:
        """Return the hash of ``size`` items from each of ``starts``."""
        differences = self.sums[starts + size] - self.sums[starts]
        return mix(differences * _powers(_capacity(len(self.text)))[1][starts])


def words_and_characters(points: Points) -> tuple[Items, Items | None]:
    """Return the words of normalized texts, and their characters in texts without spaces.

    Each text in ``points`` ends with a SEPARATOR. The characters are None if no text contains a
    script without spaces.
    """
    inside = points > SPACE
    ends_of_texts = np.flatnonzero(points == SEPARATOR)
    values = np.zeros(len(points), np.uint64)
    values[inside] = mix(points[inside].astype(np.uint64))
    edges = np.diff(inside.astype(np.int8), prepend=0)
    starts, ends = np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)
    sums = _prefix_sums(values)
    spelled = mix((sums[ends] - sums[starts]) * _powers(_capacity(len(values)))[1][starts])
    letters = _counts_before(is_letter(points))
    spoken = _counts_before(letters[ends] > letters[starts])
    text = np.searchsorted(ends_of_texts, starts)
    words = Items(text, _prefix_sums(spelled), spoken, is_words=True)
    unspaced = is_unspaced(points)
    if not unspaced.any():
        return words, None
    counts = np.add.reduceat(unspaced, np.concatenate([[0], ends_of_texts[:-1] + 1]), dtype=int)
    text = np.repeat(np.arange(len(counts)), np.diff(ends_of_texts, prepend=-1))
    chosen = np.flatnonzero(inside & (counts > 0)[text])
    before = _counts_before(unspaced[chosen])
    return words, Items(text[chosen], _prefix_sums(values[chosen]), before, is_words=False)


def _counts_before(flags: np.ndarray) -> Int64[np.ndarray, " n_and_one"]:
    """Return the number of true flags before each index."""
    return np.concatenate([[0], np.cumsum(flags)])


def mix(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Return a bijection of 64-bit values in which each bit depends on all bits."""
    mixed = values + np.uint64(_BASE)
    for shift, factor in zip((30, 27), _MIX, strict=True):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= factor
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _prefix_sums(values: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n_and_one"]:
    """Return the sums of ``values[k] * base ** k`` for all prefixes, the empty prefix first."""
    weighted = values * _powers(_capacity(len(values)))[0][: len(values)]
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(weighted, dtype=np.uint64)])


def _capacity(count: int) -> int:
    """Return the next power of two, so that few tables of powers are computed."""
    return 1 << max(count, 1024).bit_length()


@cache
def _powers(count: int) -> tuple[UInt64[np.ndarray, " n"], UInt64[np.ndarray, " n"]]:
    """Return the first ``count`` powers of the base, and their inverses, modulo 2^64."""
    inverse = pow(_BASE, -1, 1 << 64)
    steps = (np.full(count - 1, base, np.uint64) for base in (_BASE, inverse))
    powers, inverses = (np.concatenate([[np.uint64(1)], np.cumprod(step)]) for step in steps)
    return powers, inverses
