"""What is minimised: (model, batch) -> loss sum, weight, and sums to report.

An objective returns sums; the step adds them over micro-batches and devices and divides once, so
that accumulation is exact on ragged masks.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.batch import TokenBatch
from llama_cpt.config import NextTokenConfig
from llama_cpt.model.llama import Llama
from llama_cpt.training.cross_entropy import linear_cross_entropy

Sums = dict[str, tuple[jax.Array, jax.Array]]
Objective = Callable[[Llama, TokenBatch], tuple[jax.Array, jax.Array, Sums]]


def make_objective(
    config: NextTokenConfig, *, num_corpora: int, loss_chunk_tokens: int
) -> Objective:
    """The objective that the config names."""
    return partial(
        next_token_loss,
        z_loss=config.z_loss,
        num_corpora=num_corpora,
        loss_chunk_tokens=loss_chunk_tokens,
    )


def next_token_loss(
    model: Llama, batch: TokenBatch, *, z_loss: float, num_corpora: int, loss_chunk_tokens: int
) -> tuple[Float[Array, ""], Float[Array, ""], Sums]:
    """Cross-entropy of the next token over the masked-in targets, in nats.

    ``sums``: ``nll`` over all targets and ``corpus_nll`` per corpus, shape (num_corpora,), without
    the z-loss.
    """
    hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids)
    with jax.named_scope("loss"):
        loss_sum, nll = linear_cross_entropy(
            hidden, model.head, batch.targets, batch.loss_mask, z_loss, loss_chunk_tokens
        )
    nll = jax.lax.stop_gradient(nll) * batch.loss_mask
    weight = jnp.sum(batch.loss_mask)
    member = jax.nn.one_hot(batch.corpus, num_corpora, dtype=jnp.float32)
    per_corpus = (
        jnp.einsum("bt,btc->c", nll, member),
        jnp.einsum("bt,btc->c", batch.loss_mask, member),
    )
    return loss_sum, weight, {"nll": (jnp.sum(nll), weight), "corpus_nll": per_corpus}
