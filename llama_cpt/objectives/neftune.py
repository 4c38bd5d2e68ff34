"""NEFTune: uniform noise added to the embeddings in training (Jain et al., arXiv 2310.05914)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.data.batch import TokenBatch


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
