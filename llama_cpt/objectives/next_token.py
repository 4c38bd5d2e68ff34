"""The next-token objective, with or without the noise of NEFTune, and ``make_objective``.

An objective is a function ``(model, batch) -> (loss sum, weight, metrics)``. It returns sums, not
means. The training step adds the sums of all micro-batches and divides once by the total weight.
The result is exact even if micro-batches have different numbers of target tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.config.schema import NextTokenConfig, PreferenceConfig
from llama_cpt.data.batch import TokenBatch
from llama_cpt.model.llama import Llama
from llama_cpt.objectives.cross_entropy import linear_cross_entropy
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


def embedding_noise(
    batch: TokenBatch, embed_dim: int, *, alpha: float, seed: int
) -> Float[Array, "batch length embed"]:
    """Return uniform float32 noise in (-a, a), where a = ``alpha`` / sqrt(L ``embed_dim``).

    For each token, L is the number of tokens in the segment that contains the token. This is
    algorithm 1 of Jain et al. (arXiv 2310.05914), in which L is the length of one conversation. The
    random draws of a row depend only on ``seed`` and on the row's number in the run, so the noise
    is the same for every mesh and micro-batch size.
    """
    length = batch.tokens.shape[1]

    def draw(row: jax.Array) -> jax.Array:
        # A row's number has 64 bits and is given as two 32-bit words.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row[0]), row[1])
        return jax.random.uniform(key, (length, embed_dim), jnp.float32, -1.0, 1.0)

    sizes = segment_lengths(batch.positions, batch.segment_ids).astype(jnp.float32)
    return alpha * jax.lax.rsqrt(sizes * embed_dim)[..., None] * jax.vmap(draw)(batch.row)


def segment_lengths(
    positions: Int[Array, "batch length"], segment_ids: Int[Array, "batch length"]
) -> Int[Array, "batch length"]:
    """Return, for each token, the number of tokens in the segment that contains the token."""
    # A token's segment ends at the first index, from the token on, after which the id changes.
    index = jnp.broadcast_to(jnp.arange(positions.shape[1])[None], positions.shape)
    after = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    ends = jnp.where(segment_ids != after, index, positions.shape[1])
    end = jax.lax.cummin(ends, axis=1, reverse=True)
    return positions + 1 + end - index
