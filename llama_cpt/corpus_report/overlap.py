"""An index of the n-grams of evaluation texts, and the search for them in documents."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Int64, UInt64
import numpy as np

from llama_cpt.corpus_report.characters import normalize
from llama_cpt.corpus_report.grams import Items, words_and_characters
from llama_cpt.runtime.errors import UserError

WORDS, CHARACTERS = 13, 50
"""Number of words per n-gram; number of characters in scripts without spaces."""
SHORT_WORDS, SHORT_CHARACTERS = 8, 25
"""Minimum size of a question that is shorter than an n-gram. It is compared as a whole."""
MAX_GRAMS = 12_000_000
"""Maximum number of n-grams in the index, which limits its memory to about 1 GB."""
BATCH_CHARACTERS = 1 << 18
"""Number of characters that are hashed at a time; the arrays fit into the cache."""


class EvaluationText(NamedTuple):
    """A question or document that a model must not be trained on."""

    source: str
    """Name of the benchmark or held-out corpus."""
    place: str
    """The file or part, and the number of the question or document."""
    texts: tuple[str, ...]
    """Forms of the text. A form that is shorter than an n-gram is compared as a whole."""
    fields: tuple[str, ...] = ()
    """Other parts of the question, which are compared only if they contain an n-gram."""


class Match(NamedTuple):
    """An overlap of a document with an evaluation text."""

    document: int
    """Index of the document in the batch."""
    text: int
    """Index of the first evaluation text that contains the first common n-gram."""
    grams: int
    """Number of common n-grams in the document."""


@dataclass(frozen=True)
class _Table:
    """Sorted hashes of n-grams, with the evaluation text of each hash."""

    keys: UInt64[np.ndarray, " n"]
    texts: Int64[np.ndarray, " n"]
    wholes: UInt64[np.ndarray, " n"]
    """Hash of the whole text, for short texts whose first items have the hash in ``keys``."""
    sizes: Int64[np.ndarray, " n"]
    """Number of items of the whole text."""
    filter: np.ndarray
    """bool: whether a key begins with the bits that are the index of the entry."""

    def find(self, hashes: UInt64[np.ndarray, " m"]) -> Int64[np.ndarray, " k"]:
        """Return the indices of ``hashes`` that are in ``keys``."""
        if not len(self.keys):
            return np.zeros(0, np.int64)
        found = np.flatnonzero(self.filter[hashes >> np.uint64(64 - _bits(len(self.filter)))])
        at = np.searchsorted(self.keys, hashes[found])
        return found[self.keys[np.minimum(at, len(self.keys) - 1)] == hashes[found]]


class OverlapIndex:
    """The n-grams of evaluation texts, which are searched in documents."""

    def __init__(self, texts: Iterable[EvaluationText]) -> None:
        self.sources: list[tuple[str, str]] = []
        """Source and place of each evaluation text."""
        self.texts: Counter[str] = Counter()
        """Number of texts by source."""
        self.too_short: Counter[str] = Counter()
        """Number of texts by source that are too short to be compared."""
        parts: dict[int, list[tuple[np.ndarray, ...]]] = {size: [] for size in _SIZES}
        total = 0
        for batch in _batches(texts):
            for size, rows in self._add(batch).items():
                parts[size].append(rows)
                total += len(rows[0])
            if total > MAX_GRAMS:
                raise UserError(
                    f"the held-out and evaluation texts have more than {MAX_GRAMS:,} n-grams; "
                    "name smaller held-out corpora in data.heldout."
                )
        names = {name: number for number, name in enumerate(self.texts)}
        self._source_numbers = np.array([names[name] for name, _ in self.sources], np.int64)
        self._tables = {size: _table(rows) for size, rows in parts.items()}

    def _add(self, batch: Sequence[EvaluationText]) -> dict[int, tuple[np.ndarray, ...]]:
        """Return key, text, whole hash and size of the n-grams in ``batch``, by n-gram size."""
        first = len(self.sources)
        self.sources += [(one.source, one.place) for one in batch]
        self.texts.update(one.source for one in batch)
        forms = [form for one in batch for form in (*one.texts, *one.fields)]
        sizes = [len(one.texts) + len(one.fields) for one in batch]
        owner = np.repeat(np.arange(len(batch)), sizes)
        is_text = np.concatenate(
            [np.arange(size) < len(one.texts) for one, size in zip(batch, sizes, strict=True)]
        )
        covered, rows = np.zeros(len(batch), bool), {}
        for items, long, short in _paired(*words_and_characters(normalize(forms))):
            starts, keys = items.grams(long)
            texts = owner[items.text[starts]]
            rows[long] = (keys, first + texts, keys, np.full(len(keys), long))
            form, *whole = _short_texts(items, long, short, is_text)
            rows[short] = (whole[0], first + owner[form], *whole[1:])
            covered[texts] = covered[owner[form]] = True
        pairs = zip(batch, covered, strict=True)
        self.too_short.update(one.source for one, is_covered in pairs if not is_covered)
        return rows

    def find(self, words: Items, characters: Items | None) -> list[Match]:
        """Return the overlaps of the documents of a batch, one per document and source at most."""
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for items, long, short in _paired(words, characters):
            for starts, texts in (self._long(items, long), *self._short(items, short)):
                pairs = np.stack([items.text[starts], self._source_numbers[texts]])
                pairs, at, counts = np.unique(pairs, axis=1, return_index=True, return_counts=True)
                rows = zip(*pairs.tolist(), texts[at].tolist(), counts.tolist(), strict=True)
                for document, source, text, count in rows:
                    earlier, grams = found.get((document, source), (text, 0))
                    found[document, source] = earlier, grams + count
        return [Match(document, *match) for (document, _), match in sorted(found.items())]

    def _long(self, items: Items, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first items of all common n-grams, and an evaluation text for each."""
        starts, hashes = items.grams(size)
        table = self._tables[size]
        found = table.find(hashes)
        at = np.searchsorted(table.keys, hashes[found])
        return starts[found], table.texts[at]

    def _short(self, items: Items, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the first items of common short texts, and an evaluation text for each."""
        table = self._tables[size]
        if not len(table.keys):
            return []
        starts, hashes = items.grams(size)
        hits = []
        for number in table.find(hashes).tolist():
            start = starts[number]
            low, high = (np.searchsorted(table.keys, hashes[number], s) for s in ("left", "right"))
            for row in range(low, high):
                end = int(start + table.sizes[row])
                if end > len(items.text) or items.text[end - 1] != items.text[start]:
                    continue
                whole = items.hashes(np.array([start]), int(table.sizes[row]))
                if whole[0] == table.wholes[row]:
                    hits.append((np.array([start]), table.texts[row : row + 1]))
                    break
        return hits


_SIZES = (WORDS, SHORT_WORDS, CHARACTERS, SHORT_CHARACTERS)


def _paired(words: Items, characters: Items | None) -> list[tuple[Items, int, int]]:
    """Return each kind of items with the size of its n-grams and of its short texts."""
    both = [(words, WORDS, SHORT_WORDS)]
    return both + ([(characters, CHARACTERS, SHORT_CHARACTERS)] if characters else [])


def _short_texts(
    items: Items, long: int, short: int, is_text: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return index, key, hash and size of the texts that are compared as a whole.

    The key is the hash of the first ``short`` items.
    """
    counts = np.bincount(items.text, minlength=len(is_text))
    chosen = np.flatnonzero((counts >= short) & (counts < long) & is_text)
    begins, keys = items.grams(short)
    at = np.searchsorted(items.text, chosen)
    # The first characters can be without a character of a script without spaces.
    known = np.isin(at, begins)
    at, chosen = at[known], chosen[known]
    pairs = zip(at, counts[chosen], strict=True)
    whole = [items.hashes(np.array([start]), int(size)) for start, size in pairs]
    keys = keys[np.searchsorted(begins, at)]
    return chosen, keys, np.concatenate([np.zeros(0, np.uint64), *whole]), counts[chosen]


def _batches(texts: Iterable[EvaluationText]) -> Iterable[list[EvaluationText]]:
    """Yield the texts in batches of about ``BATCH_CHARACTERS``."""
    held, size = [], 0
    for text in texts:
        held.append(text)
        size += sum(map(len, text.texts + text.fields))
        if size >= BATCH_CHARACTERS:
            yield held
            held, size = [], 0
    if held:
        yield held


def _table(rows: list[tuple[np.ndarray, ...]]) -> _Table:
    """Return the sorted table of ``rows``, without entries that occur twice."""
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)] if rows else []
    keys, texts, wholes, sizes = columns or [np.zeros(0, np.uint64)] * 4
    order = np.lexsort((texts, wholes, keys))
    keys, texts, wholes, sizes = keys[order], texts[order], wholes[order], sizes[order]
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]) | (wholes[1:] != wholes[:-1])
    keys, texts, wholes, sizes = keys[new], texts[new], wholes[new], sizes[new]
    bits = min(max(len(keys) * 16, 1 << 16).bit_length(), 27)
    present = np.zeros(1 << bits, bool)
    present[keys >> np.uint64(64 - bits)] = True
    return _Table(keys, texts.astype(np.int64), wholes, sizes.astype(np.int64), present)


def _bits(size: int) -> int:
    return size.bit_length() - 1
