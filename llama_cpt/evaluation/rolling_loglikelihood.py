"""How surprising whole documents are: negative log-likelihoods in nats, in rolling windows."""

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
"""Tokens of one device whose logits exist at a time."""


def rolling_loglikelihood(
    decoder: Decoder,
    documents: Sequence[Integer[np.ndarray, "_"]],
    *,
    mesh: Mesh,
    bos_id: int,
    batch_tokens: int,
) -> Iterator[tuple[int, float]]:
    """Number and nats of each document, as soon as all its windows are scored.

    Documents begin with BOS, which is read and not scored, and end without EOS. ``batch_tokens``
    are one device's.
    """
    length = decoder.ends.config.context_length
    slices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    batch_size = max(batch_tokens // length, 1) * slices
    windows: list[Window] = []
    for number, tokens in enumerate(documents):
        # The windows leave the last token out: a document's EOS.
        ended = np.append(tokens, bos_id)
        windows += rolling_windows(ended, length, bos_id=bos_id, corpus=number)
    nats, left = np.zeros(len(documents)), np.zeros(len(documents), np.int64)
    np.add.at(left, [window.corpus for window in windows], 1)
    yield from ((int(number), 0.0) for number in np.flatnonzero(left == 0))
    rows = pack_windows(windows, length)
    for start in range(0, len(rows), batch_size):
        together = rows[start : start + batch_size]
        batch = window_batch(together, batch_size, length)
        with jax.set_mesh(mesh):
            nll = score_segments(decoder, batch, chunk_tokens=LOGIT_TOKENS)
        scored = batch.loss_mask > 0
        np.add.at(nats, batch.corpus[scored], np.asarray(nll, np.float64)[scored])
        here = np.array([window.corpus for row in together for window in row])
        np.subtract.at(left, here, 1)
        yield from ((int(n), float(nats[n])) for n in np.unique(here) if not left[n])
