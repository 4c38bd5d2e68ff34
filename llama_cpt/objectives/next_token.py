"""The next-token objective, and ``make_objective``, which creates the objective of a config.

An objective is a function ``(model, batch) -> (loss sum, weight, metrics)``. It returns sums, not
means. The training step adds the sums of all micro-batches and divides once by the total weight.
The result is exact even if micro-batches have different numbers of target tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.config.schema import NextTokenConfig, PreferenceConfig
from llama_cpt.data.batch import TokenBatch
from llama_cpt.model.llama import Llama
from llama_cpt.objectives.cross_entropy import linear_cross_entropy
from llama_cpt.objectives.neftune import embedding_noise
from llama_cpt.objectives.preference import Sums, kto_loss, preference_loss
from llama_cpt.objectives.preference_losses import LOSSES

Objective = Callable[[Any, Any], tuple[jax.Array, jax.Array, Sums]]
"""A function ``(model, batch) -> (loss sum, weight, metrics)``.

The training step differentiates the loss sum.
"""


def make_objective(
    config: NextTokenConfig | PreferenceConfig,
    *,
    num_corpora: int,
    loss_chunk_tokens: int,
    seed: int,
) -> Objective:
    """Return the objective that ``config`` describes.

    ``seed`` is the seed of the run. With NEFTune, the seed is a constant in the compiled step.
    Otherwise it has no effect, and runs with different seeds can share a compiled step.
    """
    options = {"num_corpora": num_corpora, "loss_chunk_tokens": loss_chunk_tokens}
    match config:
        case NextTokenConfig(z_loss=z_loss, neftune_alpha=0):
            return partial(next_token_loss, z_loss=z_loss, **options)
        case NextTokenConfig(z_loss=z_loss, neftune_alpha=alpha):
            noise = partial(embedding_noise, alpha=alpha, seed=seed)
            return partial(next_token_loss, z_loss=z_loss, noise=noise, **options)
        case PreferenceConfig(loss=loss):
            function = preference_loss if LOSSES[loss].takes_pairs else kto_loss
            return partial(function, config=config, **options)


def next_token_loss(  # noqa: PLR0913 - inputs, options of the loss and of the report
    model: Llama,
    batch: TokenBatch,
    *,
    z_loss: float,
    num_corpora: int,
    loss_chunk_tokens: int,
    noise: Callable[..., jax.Array] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""], Sums]:
    """Return the loss sum in nats over the targets in ``loss_mask``, their number, and the metrics.

    The loss is the cross-entropy plus the z-loss. The metrics are ``train/nll``, over all these
    targets, and ``corpus_loss``, over the targets of each corpus, with shape (num_corpora,). They
    do not include the z-loss. If ``noise`` is not None, ``noise(batch, embed_dim)`` is added to the
    embeddings.
    """
    added = None if noise is None else noise(batch, model.config.embed_dim)
    hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids, embedding_noise=added)
    with jax.named_scope("loss"):
        loss_sum, nll = linear_cross_entropy(
            hidden, model.head, batch.targets, batch.loss_mask, z_loss, loss_chunk_tokens
        )
    # Only the loss sum is differentiated, not the metrics.
    nll = jax.lax.stop_gradient(nll) * batch.loss_mask
    weight = jnp.sum(batch.loss_mask)
    # A product with one-hot columns gives the sums per corpus without a scatter.
    member = jax.nn.one_hot(batch.corpus, num_corpora, dtype=jnp.float32)
    per_corpus = (
        jnp.einsum("bt,btc->c", nll, member),
        jnp.einsum("bt,btc->c", batch.loss_mask, member),
    )
    return loss_sum, weight, {"train/nll": (jnp.sum(nll), weight), "corpus_loss": per_corpus}
