"""Log-likelihoods of whole documents in rolling windows, which are batched by length.

A row of a batch is 128, 256, 512, ... tokens long, so that short documents are not padded to the
length of the longest window, and few programs are compiled. A row holds as many windows as fit,
and attention does not cross windows.
"""

from collections.abc import Callable, Iterator, Sequence
import itertools
import math

import jax
from jax.sharding import Mesh
from jaxtyping import Integer
import numpy as np

from llama_cpt.generation.decoder import MIN_BUCKET, Decoder
from llama_cpt.generation.option_scoring import score_segments
from llama_cpt.parallel.mesh import BATCH_AXES
from llama_cpt.training.heldout import Window, pack_windows, rolling_windows, window_batch

LOGIT_TOKENS = 1024
"""Number of tokens per device whose logits are in memory at the same time."""

Batch = tuple[list[list[Window]], int, int]
"""Rows of windows, the length of a row in tokens, and the number of rows with padding."""


def rolling_loglikelihood(
    decoder: Decoder,
    documents: Sequence[Integer[np.ndarray, "_"]],
    *,
    mesh: Mesh,
    window: int,
    batch_tokens: int,
    on_scored: Callable[[float], None] | None = None,
) -> Iterator[tuple[int, float]]:
    """Yield the index of each document and its negative log-likelihood in nats, in any order.

    A document is yielded as soon as all its windows are scored. Documents must begin with a
    token that is read but not scored, usually BOS, and must not end with EOS. ``window`` is the
    maximum number of tokens per window, and ``batch_tokens`` is the number of tokens per device in
    a batch. After each batch, ``on_scored`` is called with the number of tokens that it scored.
    """
    windows: list[Window] = []
    for number, tokens in enumerate(documents):
        # rolling_windows does not score the last token, which is EOS in prepared rows. Append a
        # token in place of EOS.
        ended = np.append(tokens, tokens[:1])
        windows += rolling_windows(ended, window, corpus=number)
    nats, pending = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
    np.add.at(pending, [one.corpus for one in windows], 1)
    yield from ((int(number), 0.0) for number in np.flatnonzero(pending == 0))
    slices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    for rows, length, size in make_batches(windows, window, batch_tokens, slices):
        batch = window_batch(rows, size, length)
        with jax.set_mesh(mesh):
            nll = score_segments(decoder, batch, chunk_tokens=LOGIT_TOKENS)
        scored = batch.loss_mask > 0
        np.add.at(nats, batch.corpus[scored], np.asarray(nll, np.float64)[scored])
        if on_scored:
            on_scored(float(scored.sum()))
        scored_documents = np.array([one.corpus for row in rows for one in row])
        np.subtract.at(pending, scored_documents, 1)
        done = (n for n in np.unique(scored_documents) if not pending[n])
        yield from ((int(n), float(nats[n])) for n in done)


def make_batches(
    windows: Sequence[Window], longest: int, batch_tokens: int, slices: int
) -> list[Batch]:
    """Return batches that contain each of ``windows`` once, longest rows first.

    A batch holds at most about ``batch_tokens * slices`` tokens, and its number of rows is a
    multiple of ``slices``. All batches with the same row length have the same number of rows. Rows
    that would be partly or completely empty are filled with shorter windows. ``longest`` is the
    maximum length of a window.
    """
    batches: list[Batch] = []
    rest = list(windows)
    while rest:
        length = max(row_length(len(one.tokens), longest) for one in rest)
        rows = pack_windows(rest, length)
        # The first window of a row is its longest. Only these rows need this length.
        needed = sum(row_length(len(row[0].tokens), longest) == length for row in rows)
        size = min(max(batch_tokens // length, 1) * slices, -(-needed // slices) * slices)
        end = -(-needed // size) * size
        batches += [
            (rows[start : start + size], length, size)
            for start in range(0, min(end, len(rows)), size)
        ]
        rest = list(itertools.chain.from_iterable(rows[end:]))
    return batches


def row_length(tokens: int, longest: int) -> int:
    """Return the length of a row for a window of ``tokens``: a power of two, at least 128.

    The length is at most ``longest``, rounded up to a multiple of 128, which kernels require.
    """
    power = max(1 << (tokens - 1).bit_length(), MIN_BUCKET)
    return min(power, -(-longest // MIN_BUCKET) * MIN_BUCKET)
