"""A sample of the documents of a corpus, their languages, and near-duplicates in it.

The sample contains the documents with the smallest keys. The key of a document is a hash of the
smallest hash of its n-grams. Documents that have most n-grams in common therefore have equal keys
in most cases, and are sampled together. The sample does not depend on the order of the documents.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
import heapq
import re
from typing import Any

from jaxtyping import UInt64
import numpy as np

from llama_cpt.corpus_report.characters import SPACE, is_unspaced, normalize
from llama_cpt.corpus_report.grams import Items, mix
from llama_cpt.corpus_report.overlap import CHARACTERS, WORDS

SAMPLE_DOCUMENTS = 2000
LANGUAGE_CHARACTERS = 1000
"""Number of characters at the start of a document from which its language is identified."""
COMPARED_CHARACTERS = 4000
"""Number of characters at the start of a document that are compared for near-duplicates."""
SIMILAR = 0.8
"""Minimum Jaccard similarity of near-duplicates."""
NO_LANGUAGE = "zxx"
"""Code of py3langid for text that is in no language, such as tables of numbers."""
_SHINGLE = 5
_PERMUTATIONS = 128
_WORD = re.compile(r"\S+")


@dataclass(order=True)
class _Entry:
    """A sampled document; the entry with the largest key is the smallest entry."""

    negative_key: int
    document: int
    digest: bytes
    text: str


@dataclass
class Sample:
    """The documents with the smallest keys, without exact duplicates."""

    entries: list[_Entry] = field(default_factory=list)
    """A heap, of which the first entry has the largest key."""
    _digests: set[bytes] = field(default_factory=set)

    @property
    def bound(self) -> int:
        """Largest key in the sample if the sample is full, else the largest possible key."""
        full = len(self.entries) == SAMPLE_DOCUMENTS
        return -self.entries[0].negative_key if full else (1 << 64) - 1

    @property
    def texts(self) -> list[str]:
        """Beginnings of the sampled documents, sorted by key."""
        return [entry.text for entry in self._ordered()]

    @property
    def keys(self) -> UInt64[np.ndarray, " documents"]:
        """Keys of the sampled documents in ascending order."""
        return np.array([-entry.negative_key for entry in self._ordered()], np.uint64)

    def below(self, keys: UInt64[np.ndarray, " n"]) -> Iterator[tuple[int, int]]:
        """Yield index and value of the keys that can belong to the sample."""
        for at in np.flatnonzero(keys <= np.uint64(self.bound)).tolist():
            yield at, int(keys[at])

    def add(self, key: int, document: int, digest: bytes, text: str) -> None:
        """Add a document, and remove the document with the largest key if the sample is full."""
        if digest in self._digests or key > self.bound:
            return
        entry = _Entry(-key, -document, digest, text[:COMPARED_CHARACTERS])
        self._digests.add(digest)
        if len(self.entries) < SAMPLE_DOCUMENTS:
            heapq.heappush(self.entries, entry)
        else:
            self._digests.remove(heapq.heappushpop(self.entries, entry).digest)

    def _ordered(self) -> list[_Entry]:
        return sorted(self.entries, reverse=True)


def sample_keys(
    digests: Sequence[bytes], words: Items, characters: Items | None
) -> UInt64[np.ndarray, " documents"]:
    """Return the key of each document; the digest decides if a document has no n-gram."""
    keys = np.frombuffer(b"".join(digest[:8] for digest in digests), np.dtype("<u8")).copy()
    for items, size in ((words, WORDS), (characters, CHARACTERS)):
        if items is None:
            continue
        starts, hashes = items.grams(size)
        if len(starts):
            documents, first = np.unique(items.text[starts], return_index=True)
            keys[documents] = np.minimum.reduceat(hashes, first)
    return mix(keys)


def languages(sample: Sample) -> Counter[str]:
    """Return the number of sampled documents in each language."""
    identifier = _identifier()
    return Counter(
        identifier.classify(" ".join(text[:LANGUAGE_CHARACTERS].split()))[0]
        for text in sample.texts
    )


def near_duplicates(samples: Sequence[Sample]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return the number of near-duplicates for each pair of samples.

    The value of the pair (a, b) is the number of documents of sample a with a near-duplicate in
    sample b, and the number of documents of sample a that were compared. Only documents with keys
    that can be in both samples are compared.
    """
    # Imported here, because the package is optional.
    from datasketch import MinHash, MinHashLSH

    hashed = [MinHash.bulk(map(_shingles, one.texts), num_perm=_PERMUTATIONS) for one in samples]
    keys = [sample.keys for sample in samples]
    rates = {}
    for b, others in enumerate(hashed):
        index = MinHashLSH(threshold=SIMILAR, num_perm=_PERMUTATIONS)
        for number, one in enumerate(others):
            index.insert(number, one)
        for a, own in enumerate(hashed):
            bound = np.uint64(min(samples[a].bound, samples[b].bound))
            count = int(np.sum(keys[a] <= bound))
            found = 0
            for number, one in enumerate(own[:count]):
                candidates: list[Any] = index.query(one)
                found += any(
                    one.jaccard(others[candidate]) >= SIMILAR
                    for candidate in candidates
                    if not (a == b and candidate == number)
                )
            rates[a, b] = found, count
    return rates


def _shingles(text: str) -> list[bytes]:
    """Return the sequences of five words, or of five characters in scripts without spaces."""
    points = normalize([text])[:-1]
    alone = np.flatnonzero(is_unspaced(points))
    spaced = np.insert(points, np.concatenate([alone, alone + 1]), SPACE)
    items = _WORD.findall(spaced.astype("<u4").tobytes().decode("utf-32-le"))
    last = max(len(items) - _SHINGLE + 1, 1)
    return [" ".join(items[start : start + _SHINGLE]).encode() for start in range(last)]


@cache
def _identifier() -> Any:
    # Imported here, because the package is optional.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)
