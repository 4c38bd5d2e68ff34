"""Sampling of the next token from logits, with temperature, top-k, top-p and min-p."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from llama_cpt.data.batch import Leaf
from llama_cpt.runtime.errors import UserError

Settings = tuple[Leaf, Leaf, Leaf, Leaf, Leaf]
"""The temperature, top-k, top-p, min-p and seed, as arguments of a compiled program."""


@dataclass(frozen=True)
class Sampling:
    """Sampling options. The default is greedy decoding.

    Top-k, top-p and min-p are applied in this order, as in transformers. All three are off by
    default.
    """

    temperature: float = 0.0
    """The temperature. At 0, the most likely token is chosen and all other options are ignored."""
    top_k: int = 0
    """The number of most likely tokens to keep; 0 keeps all."""
    top_p: float = 1.0
    """The smallest set of most likely tokens with at least this total probability is kept (nucleus
    sampling, arXiv 1904.09751)."""
    min_p: float = 0.0
    """The minimum ratio of a kept token's probability to the most likely token's probability (arXiv
    2407.01082)."""
    seed: int = 0
    """The seed of the random numbers."""

    def __post_init__(self) -> None:
        """Raise UserError if an option is out of range."""
        if not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"temperature={self.temperature} must be finite and at least 0; 0 is greedy."
            )
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} must be at least 0; 0 keeps all.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be above 0 and at most 1.")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} must be in [0, 1].")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be in [0, 2**32).")

    def settings(self) -> Settings:
        """Return the options as NumPy scalars, in the form that ``sample`` takes."""
        return (
            np.float32(self.temperature),
            np.int32(min(self.top_k, 2**31 - 1)),
            np.float32(self.top_p),
            np.float32(self.min_p),
            np.uint32(self.seed),
        )


def sample(
    logits: Float[Array, "batch vocab"],
    settings: Settings,
    rows: Int[Array, " batch"],
    positions: Int[Array, " batch"],
) -> Int[Array, " batch"]:
    """Return one sampled token per row.

    ``rows`` are the indices of the rows, and ``positions`` are the positions of the sampled tokens.
    The random numbers depend on the seed, the row index and the position, but not on the batch, the
    padding or the mesh.
    """
    temperature, *_, seed = settings

    def sampled() -> jax.Array:
        key = jax.random.key(seed)
        keys = jax.vmap(lambda row, at: jax.random.fold_in(jax.random.fold_in(key, row), at))(
            rows, positions
        )
        # Gumbel-max trick: the argmax of logits plus Gumbel noise is a sample of their softmax.
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
        return jnp.argmax(filter_logits(logits / temperature, settings) + noise, axis=-1)

    chosen = jax.lax.cond(temperature > 0, sampled, lambda: jnp.argmax(logits, axis=-1))
    return chosen.astype(jnp.int32)


def filter_logits(
    logits: Float[Array, "batch vocab"], settings: Settings
) -> Float[Array, "batch vocab"]:
    """Return ``logits`` with -inf for the tokens that top-k, top-p or min-p removes.

    ``logits`` must already be divided by the temperature. Top-k and top-p also keep every token
    whose logit equals the smallest kept logit.
    """
    _, top_k, top_p, min_p, _ = settings
    # Sorting takes most of the time, so it is skipped if neither top-k nor top-p is on.
    logits = jax.lax.cond(
        (top_k > 0) | (top_p < 1),
        lambda: jnp.where(logits < _threshold(logits, top_k, top_p), -jnp.inf, logits),
        lambda: logits,
    )
    best = logits.max(-1, keepdims=True)
    return jnp.where(logits < best + jnp.log(min_p), -jnp.inf, logits)


def _threshold(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Return the smallest logit that remains after top-k and then top-p, of shape (batch, 1)."""
    vocab = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(vocab)[None]
    kept = jnp.where(rank < jnp.where(top_k > 0, top_k, vocab), ordered, -jnp.inf)
    probability = jax.nn.softmax(kept, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # top_p = 1 must keep all tokens, but the rounded sum reaches 1 before the end of the tail.
    allowed = (kept > -jnp.inf) & ((before < top_p) | (top_p >= 1) | (rank == 0))
    return jnp.min(jnp.where(allowed, kept, jnp.inf), axis=-1, keepdims=True)
