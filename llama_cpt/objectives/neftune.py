"""NEFTune: uniform noise on the embeddings in training (Jain et al. 2023, arXiv 2310.05914)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.data.batch import TokenBatch


def embedding_noise(
    batch: TokenBatch, embed_dim: int, *, alpha: float, seed: int
) -> Float[Array, "batch length embed"]:
    """Return float32 noise in (-a, a), a = ``alpha`` / sqrt(L embed_dim), L the segment's length.

    Algorithm 1 of the paper, whose L is the length of one conversation. A row's noise depends only
    on ``seed`` and the row's number in the run, so mesh and micro-batches do not change it.
    """
    length = batch.tokens.shape[1]

    def draw(row: jax.Array) -> jax.Array:
        # A row's number is 64 bits wide and comes as two words.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row[0]), row[1])
        return jax.random.uniform(key, (length, embed_dim), jnp.float32, -1.0, 1.0)

    sizes = segment_lengths(batch.positions, batch.segment_ids).astype(jnp.float32)
    return alpha * jax.lax.rsqrt(sizes * embed_dim)[..., None] * jax.vmap(draw)(batch.row)


def segment_lengths(
    positions: Int[Array, "batch length"], segment_ids: Int[Array, "batch length"]
) -> Int[Array, "batch length"]:
    """Return, for each token, the number of tokens in its segment."""
    # A segment ends at the nearest index, from here on, after which the id changes.
    index = jnp.broadcast_to(jnp.arange(positions.shape[1])[None], positions.shape)
    after = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    ends = jnp.where(segment_ids != after, index, positions.shape[1])
    end = jax.lax.cummin(ends, axis=1, reverse=True)
    return positions + 1 + end - index
