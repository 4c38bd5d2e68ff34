"""Exact duplicates inside and between corpora."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int64
import numpy as np

from llama_cpt.corpus_report.scan import DIGEST_BYTES, CorpusScan


@dataclass(frozen=True)
class Duplicates:
    """Documents that are equal to other documents, in the order of the corpora."""

    first: Int64[np.ndarray, " documents"]
    """Index of the first equal document, for the documents of all corpora."""
    ends: tuple[int, ...]
    """Index after the last document of each corpus."""
    inside: tuple[int, ...]
    """Number of documents of each corpus that repeat an earlier document of the same corpus."""
    between: dict[tuple[int, int], int]
    """Number of different documents that occur in both corpora, for each pair of corpora."""

    def repeated(self, corpus: int) -> Int64[np.ndarray, " n"]:
        """Return the indices in ``corpus`` of the documents that repeat an earlier document."""
        begin = self.ends[corpus - 1] if corpus else 0
        own = np.arange(begin, self.ends[corpus])
        return np.flatnonzero(self.first[own] < own)


def find_duplicates(scans: Sequence[CorpusScan]) -> Duplicates:
    """Return the exact duplicates among the documents of all corpora."""
    sizes = [scan.documents for scan in scans]
    ends = np.cumsum(sizes)
    digests = np.frombuffer(b"".join(bytes(scan.digests) for scan in scans), np.dtype("<u8"))
    low, high = digests.reshape(-1, DIGEST_BYTES // 8).T
    # The sort is stable, so that equal documents keep their order.
    order = np.lexsort((low, high))
    new = np.ones(len(order), bool)
    new[1:] = (low[order[1:]] != low[order[:-1]]) | (high[order[1:]] != high[order[:-1]])
    text = np.cumsum(new) - 1
    first = np.empty(len(order), np.int64)
    first[order] = order[new][text] if len(order) else order
    corpus = np.repeat(np.arange(len(scans)), sizes)
    text_of = np.empty(len(order), np.int64)
    text_of[order] = text
    known = [np.unique(text_of[corpus == number]) for number in range(len(scans))]
    between = {
        (a, b): len(np.intersect1d(known[a], known[b], assume_unique=True))
        for b in range(len(scans))
        for a in range(b)
    }
    inside = tuple(size - len(texts) for size, texts in zip(sizes, known, strict=True))
    return Duplicates(first, tuple(ends.tolist()), inside, between)
