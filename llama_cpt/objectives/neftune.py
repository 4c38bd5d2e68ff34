"""NEFTune: uniform noise on the embeddings while training (Jain et al. 2023, arXiv 2310.05914)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.data.batch import TokenBatch


def embedding_noise(
    batch: TokenBatch, embed_dim: int, *, alpha: float, seed: int
) -> Float[Array, "batch length embed"]:
    """Noise in (-a, a), a = ``alpha`` / sqrt(L embed_dim), L the tokens of a token's own segment.

    Algorithm 1 of the paper, whose L is one conversation's length. A row's noise is drawn by
    ``seed`` and its number in the run alone: mesh and micro-batches do not change it.
    """
    length = batch.tokens.shape[1]

    def draw(row: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row[0]), row[1])
        return jax.random.uniform(key, (length, embed_dim), jnp.float32, -1.0, 1.0)

    sizes = segment_lengths(batch.positions, batch.segment_ids).astype(jnp.float32)
    return alpha * jax.lax.rsqrt(sizes * embed_dim)[..., None] * jax.vmap(draw)(batch.row)


def segment_lengths(
    positions: Int[Array, "batch length"], segment_ids: Int[Array, "batch length"]
) -> Int[Array, "batch length"]:
    """The number of tokens of each token's segment."""
    places = jnp.broadcast_to(jnp.arange(positions.shape[1])[None], positions.shape)
    after = jnp.pad(segment_ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    ends = jnp.where(segment_ids != after, places, positions.shape[1])
    end = jax.lax.cummin(ends, axis=1, reverse=True)
    return positions + 1 + end - places
