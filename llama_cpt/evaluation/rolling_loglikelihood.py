"""Negative log-likelihoods of whole documents in nats, computed in rolling windows."""

from collections.abc import Iterator, Sequence
import math

import jax
from jax.sharding import Mesh
from jaxtyping import Integer
import numpy as np

from llama_cpt.generation.decoder import Decoder
from llama_cpt.generation.option_scoring import score_segments
from llama_cpt.parallel.mesh import BATCH_AXES
from llama_cpt.training.heldout import Window, pack_windows, rolling_windows, window_batch

LOGIT_TOKENS = 1024
"""Number of tokens per device whose logits are in memory at the same time."""


def rolling_loglikelihood(
    decoder: Decoder,
    documents: Sequence[Integer[np.ndarray, "_"]],
    *,
    mesh: Mesh,
    bos_id: int,
    batch_tokens: int,
) -> Iterator[tuple[int, float]]:
    """Yield the index of each document and its negative log-likelihood in nats, in any order.

    A document is yielded as soon as all its windows are scored. Documents must begin with BOS,
    which is read but not scored, and must not end with EOS. ``batch_tokens`` is the number of
    tokens per device in a batch.
    """
    length = decoder.ends.config.context_length
    slices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    batch_size = max(batch_tokens // length, 1) * slices
    windows: list[Window] = []
    for number, tokens in enumerate(documents):
        # rolling_windows does not score the last token, which is EOS in prepared rows. Append a
        # token in place of EOS.
        ended = np.append(tokens, bos_id)
        windows += rolling_windows(ended, length, bos_id=bos_id, corpus=number)
    nats, pending = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
    np.add.at(pending, [window.corpus for window in windows], 1)
    yield from ((int(number), 0.0) for number in np.flatnonzero(pending == 0))
    rows = pack_windows(windows, length)
    for start in range(0, len(rows), batch_size):
        batch_rows = rows[start : start + batch_size]
        batch = window_batch(batch_rows, batch_size, length)
        with jax.set_mesh(mesh):
            nll = score_segments(decoder, batch, chunk_tokens=LOGIT_TOKENS)
        scored = batch.loss_mask > 0
        np.add.at(nats, batch.corpus[scored], np.asarray(nll, np.float64)[scored])
        scored_documents = np.array([window.corpus for row in batch_rows for window in row])
        np.subtract.at(pending, scored_documents, 1)
        done = (n for n in np.unique(scored_documents) if not pending[n])
        yield from ((int(n), float(nats[n])) for n in done)
