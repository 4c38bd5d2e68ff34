"""Held-out loss and bits per byte of whole documents, scored in rolling windows.

Every token of a document's text is scored once. The windows are the same as in
lm-evaluation-harness (``get_rolling_token_windows`` with ``context_len`` 1), so the results can be
compared with the results of lm-evaluation-harness. BOS is the first input and is not scored. EOS is
not used. The first input of a window is the last target of the previous window. If the last of
several windows would be shorter, it is extended to the full length with earlier tokens of the
document, and these tokens are not scored again. For bits per byte, the summed loss is divided by
the number of UTF-8 bytes of the source text, so models with different tokenizers can be compared.
"""

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import math
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Integer
import numpy as np

from llama_cpt.data.batch import TokenBatch
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.progress import Progress


@runtime_checkable
class Documents(Protocol):
    """A sequence of tokenized held-out documents of one corpus."""

    def __len__(self) -> int: ...

    def read(self, indices: Integer[np.ndarray, " n"]) -> Sequence[tuple[np.ndarray, int]]:
        """Return ``(tokens, num_bytes)`` of each document in ``indices``.

        ``tokens`` starts with BOS and ends with EOS. ``num_bytes`` is the number of UTF-8 bytes of
        the source text.
        """
        ...


@dataclass(frozen=True)
class HeldoutResult:
    """The loss of a model on the sampled documents of one held-out corpus."""

    loss: float
    """Mean negative log-likelihood in nats per scored token."""
    bits_per_byte: float
    """Summed negative log-likelihood in bits, divided by ``bytes``."""
    tokens: int
    """Number of scored tokens."""
    bytes: int
    """Number of UTF-8 bytes of the documents' source text."""
    documents: int
    """Number of documents in the sample."""


class Window(NamedTuple):
    """A window of one document's tokens. Only the last ``scored`` targets are scored."""

    tokens: Integer[np.ndarray, " length"]
    targets: Integer[np.ndarray, " length"]
    scored: int
    """Number of targets at the end that are scored; the targets before them are context."""
    corpus: int
    """Index of the held-out corpus."""


class Sample(NamedTuple):
    """The windows of a sample of documents, and counts per held-out corpus."""

    windows: list[Window]
    bytes: list[int]
    documents: list[int]


def evaluate_heldout(
    score: Callable[[TokenBatch], np.ndarray],
    corpora: Mapping[str, Documents],
    *,
    sequence_length: int,
    batch_size: int,
    documents: int,
) -> dict[str, HeldoutResult]:
    """Return a dict from corpus name to the results on up to ``documents`` documents.

    The documents are evenly spaced in the corpus, so the choice is deterministic. ``score(batch)``
    returns the negative log-likelihood of ``batch.targets`` in nats. All batches and all results of
    ``score`` have shape (batch_size, sequence_length). Losses are summed in float64. Raises
    UserError if the chosen documents of a corpus contain no text.
    """
    sample = sample_windows(corpora, sequence_length, documents)
    nll, tokens = _sums(score, sample.windows, len(corpora), sequence_length, batch_size)
    return {
        name: HeldoutResult(
            loss=nll[corpus] / tokens[corpus],
            bits_per_byte=nll[corpus] / math.log(2) / sample.bytes[corpus],
            tokens=int(tokens[corpus]),
            bytes=sample.bytes[corpus],
            documents=sample.documents[corpus],
        )
        for corpus, name in enumerate(corpora)
    }


def sample_windows(
    corpora: Mapping[str, Documents], sequence_length: int, documents: int
) -> Sample:
    """Return the windows of up to ``documents`` evenly spaced documents per corpus.

    Raises UserError if the chosen documents of a corpus contain no text.
    """
    sample = Sample([], [], [])
    for corpus, (name, held) in enumerate(corpora.items()):
        chosen = held.read(np.array(evenly_spaced(len(held), documents), np.int64))
        sample.bytes.append(sum(int(byte_count) for _, byte_count in chosen))
        sample.documents.append(len(chosen))
        if not sample.bytes[-1]:
            raise UserError(
                f"held-out corpus {name!r}: the {len(chosen)} chosen documents hold no text; check "
                "the source file."
            )
        for tokens, _ in chosen:
            sample.windows.extend(rolling_windows(tokens, sequence_length, corpus=corpus))
    return sample


def evenly_spaced(available: int, wanted: int) -> list[int]:
    """Return ``min(wanted, available)`` evenly spaced indices in ``range(available)``."""
    count = min(available, wanted)
    return [i * available // count for i in range(count)]


def rolling_windows(
    document: Integer[np.ndarray, " n"], length: int, *, corpus: int
) -> Iterator[Window]:
    """Yield windows of at most ``length`` tokens that together score each text token once.

    ``document`` starts with a token that is not scored, usually BOS, and ends with EOS. A document
    without text yields no window.
    """
    text = np.asarray(document[:-1], np.int32)
    for start in range(0, len(text) - 1, length):
        end = min(start + length, len(text) - 1)
        first = max(end - length, 0)
        yield Window(text[first:end], text[first + 1 : end + 1], end - start, corpus)


def pack_windows(windows: Sequence[Window], length: int) -> list[list[Window]]:
    """Pack ``windows`` into rows of at most ``length`` tokens and return the windows of each row.

    Windows are packed by best fit, longest first.
    """
    rows: list[list[Window]] = []
    room: list[tuple[int, int]] = []  # (number of free tokens, row index), ascending
    for window in sorted(windows, key=lambda window: -len(window.tokens)):
        size = len(window.tokens)
        fit = bisect.bisect_left(room, (size, -1))
        free, row = room.pop(fit) if fit < len(room) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(window)
        if free > size:
            bisect.insort(room, (free - size, row))
    return rows


def window_batch(rows: Sequence[Sequence[Window]], batch_size: int, length: int) -> TokenBatch:
    """Return a batch of shape (batch_size, length) with up to ``batch_size`` rows of windows.

    Each window is a segment, and padding has segment id 0. The field ``loss_mask`` is 1 for scored
    targets. The field ``corpus`` contains the index of the held-out corpus of each token.
    """
    fields = {
        name: np.zeros((batch_size, length), np.int32)
        for name in ("tokens", "targets", "segment_ids", "positions", "corpus")
    }
    loss_mask = np.zeros((batch_size, length), np.float32)
    for i, row in enumerate(rows):
        start = 0
        for segment, window in enumerate(row, 1):
            span = i, slice(start, start + len(window.tokens))
            fields["tokens"][span] = window.tokens
            fields["targets"][span] = window.targets
            fields["segment_ids"][span] = segment
            fields["positions"][span] = np.arange(len(window.tokens))
            fields["corpus"][span] = window.corpus
            start += len(window.tokens)
            loss_mask[i, start - window.scored : start] = 1
    return TokenBatch(**fields, loss_mask=loss_mask, row=np.zeros((batch_size, 2), np.uint32))


def _sums(
    score: Callable[[TokenBatch], np.ndarray],
    windows: Sequence[Window],
    num_corpora: int,
    length: int,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed NLL in nats and the number of scored tokens per corpus.

    Both arrays are float64 and have shape (num_corpora,).
    """
    nll, tokens = np.zeros(num_corpora), np.zeros(num_corpora)
    rows = pack_windows(windows, length)
    total = float(sum(window.scored for window in windows))
    with Progress("held-out", total, "tokens") as progress:
        for start in range(0, len(rows), batch_size):
            batch = window_batch(rows[start : start + batch_size], batch_size, length)
            scored = batch.loss_mask > 0
            values = np.asarray(score(batch), np.float64)[scored]
            corpus = batch.corpus[scored]
            nll += np.bincount(corpus, values, minlength=num_corpora)
            tokens += np.bincount(corpus, minlength=num_corpora)
            progress.update(float(len(values)))
    return nll, tokens
