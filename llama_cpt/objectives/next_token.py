"""Training objectives: functions (model, batch) -> (loss sum, weight, sums of the metrics).

An objective returns sums. The step adds them over micro-batches and devices and divides once, so
that accumulation is exact even if micro-batches have different numbers of counted tokens.
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
"""``(model, batch) -> (loss sum, weight, metrics)``; gradients flow from the loss sum."""


def make_objective(
    config: NextTokenConfig | PreferenceConfig,
    *,
    num_corpora: int,
    loss_chunk_tokens: int,
    seed: int,
) -> Objective:
    """Return the objective that the config names.

    ``seed`` is the seed of the run. If NEFTune draws noise, it is a constant of the compiled step;
    otherwise it has no effect, so that runs with different seeds share a compiled step.
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
    """Return the sum of the next token's cross-entropy over the counted targets, in nats.

    The second value is the number of counted targets. The metrics are ``train/nll`` over all
    targets and ``corpus_loss`` per corpus, shape (num_corpora,), both without the z-loss.
    ``noise(batch, embed_dim)``, if given, is added to the embeddings.
    """
    added = None if noise is None else noise(batch, model.config.embed_dim)
    hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids, embedding_noise=added)
    with jax.named_scope("loss"):
        loss_sum, nll = linear_cross_entropy(
            hidden, model.head, batch.targets, batch.loss_mask, z_loss, loss_chunk_tokens
        )
    # The metrics are not differentiated: gradients flow from the loss sum only.
    nll = jax.lax.stop_gradient(nll) * batch.loss_mask
    weight = jnp.sum(batch.loss_mask)
    # Sums per corpus as a product with one-hot columns, which needs no scatter.
    member = jax.nn.one_hot(batch.corpus, num_corpora, dtype=jnp.float32)
    per_corpus = (
        jnp.einsum("bt,btc->c", nll, member),
        jnp.einsum("bt,btc->c", batch.loss_mask, member),
    )
    return loss_sum, weight, {"train/nll": (jnp.sum(nll), weight), "corpus_loss": per_corpus}
