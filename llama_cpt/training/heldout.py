"""Held-out loss and bits per byte: every token of whole documents scored once, in rolling windows.

The windows are those of lm-evaluation-harness (``get_rolling_token_windows`` with ``context_len``
1), so that numbers are comparable: BOS is read and not scored, EOS is neither, a window's first
input is the last token of the previous window, and the last window starts early enough to be full.
Bits per byte divide by the UTF-8 bytes of the source text, so they do not depend on the tokenizer.
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
    """The held-out documents of a corpus, as ``prepare`` stores them."""

    def __len__(self) -> int: ...

    def read(self, indices: Integer[np.ndarray, " n"]) -> Sequence[tuple[np.ndarray, int]]:
        """Return each document's tokens from BOS to EOS and the bytes of its source text."""
        ...


@dataclass(frozen=True)
class HeldoutResult:
    """The loss of a model on one held-out corpus."""

    loss: float
    """Nats per token of text."""
    bits_per_byte: float
    tokens: int
    bytes: int
    documents: int


class Window(NamedTuple):
    """A part of one document; ``targets[-scored:]`` are scored, the rest is context."""

    tokens: Integer[np.ndarray, " length"]
    targets: Integer[np.ndarray, " length"]
    scored: int
    corpus: int


def evaluate_heldout(
    score: Callable[[TokenBatch], np.ndarray],
    corpora: Mapping[str, Documents],
    *,
    sequence_length: int,
    batch_size: int,
    documents: int,
    bos_id: int,
) -> dict[str, HeldoutResult]:
    """Score up to ``documents`` documents of each corpus, always the same ones, evenly spaced.

    ``score(batch)`` returns the negative log-likelihood of ``batch.targets`` in nats, float32
    (batch_size, sequence_length); every batch has that shape. Sums are float64. Raises UserError
    if the documents of a corpus hold no text.
    """
    windows: list[Window] = []
    byte_counts, document_counts = [], []
    for corpus, (name, held) in enumerate(corpora.items()):
        chosen = held.read(np.array(evenly_spaced(len(held), documents), np.int64))
        byte_counts.append(sum(int(byte_count) for _, byte_count in chosen))
        document_counts.append(len(chosen))
        if not byte_counts[-1]:
            raise UserError(
                f"held-out corpus {name!r}: its {len(chosen)} documents hold no text; check its "
                "source."
            )
        for tokens, _ in chosen:
            windows += rolling_windows(tokens, sequence_length, bos_id=bos_id, corpus=corpus)
    nll, tokens = _sums(score, windows, len(corpora), sequence_length, batch_size)
    return {
        name: HeldoutResult(
            loss=nll[corpus] / tokens[corpus],
            bits_per_byte=nll[corpus] / math.log(2) / byte_counts[corpus],
            tokens=int(tokens[corpus]),
            bytes=byte_counts[corpus],
            documents=document_counts[corpus],
        )
        for corpus, name in enumerate(corpora)
    }


def evenly_spaced(available: int, wanted: int) -> list[int]:
    """Return ``min(wanted, available)`` evenly spaced indices below ``available``."""
    count = min(available, wanted)
    return [i * available // count for i in range(count)]


def rolling_windows(
    document: Integer[np.ndarray, " n"], length: int, *, bos_id: int, corpus: int
) -> Iterator[Window]:
    """Yield windows of at most ``length`` tokens that score each token of ``document`` once.

    ``document`` includes BOS and EOS; one without text has no windows.
    """
    text = np.asarray(document[:-1], np.int32)
    text[:1] = bos_id
    for start in range(0, len(text) - 1, length):
        end = min(start + length, len(text) - 1)
        first = max(end - length, 0)
        yield Window(text[first:end], text[first + 1 : end + 1], end - start, corpus)


def pack_windows(windows: Sequence[Window], length: int) -> list[list[Window]]:
    """Pack windows into rows of at most ``length`` tokens by best fit, longest windows first.

    Short windows share a row as separate segments.
    """
    rows: list[list[Window]] = []
    room: list[tuple[int, int]] = []  # (tokens free, row), ascending
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
    """Return one batch (batch_size, length) of up to ``batch_size`` rows; padding has segment 0.

    ``loss_mask`` is 1 for scored targets; ``corpus`` indexes the held-out corpora.
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
    """Return the summed NLL in nats and the number of scored tokens per corpus, float64."""
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
