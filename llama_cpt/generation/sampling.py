"""Sampling of the next token from logits: greedy, temperature, top-k, top-p, min-p."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from llama_cpt.data.batch import Leaf
from llama_cpt.runtime.errors import UserError

Settings = tuple[Leaf, Leaf, Leaf, Leaf, Leaf]
"""Temperature, top-k, top-p, min-p and seed, which are arguments of the compiled program."""


@dataclass(frozen=True)
class Sampling:
    """Options of the choice of a token; the default is greedy.

    The filters apply in the order of the fields, as in transformers; each is off by default.
    """

    temperature: float = 0.0
    """Temperature; 0 is greedy: the likeliest token, whatever the other options."""
    top_k: int = 0
    """Number of likeliest tokens to keep; 0 keeps all."""
    top_p: float = 1.0
    """Total probability that the likeliest tokens must reach (nucleus, arXiv 1904.09751)."""
    min_p: float = 0.0
    """Minimum probability of a kept token relative to the likeliest (arXiv 2407.01082)."""
    seed: int = 0
    """Seed of the random draws."""

    def __post_init__(self) -> None:
        """Validate the options, so that at least one token is left."""
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
        """Return the options as arguments of ``sample``."""
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

    The randomness depends on the seed, the row's number and the position in the row, but not on the
    other rows, on padding or on the mesh.
    """
    temperature, *_, seed = settings

    def sampled() -> jax.Array:
        key = jax.random.key(seed)
        keys = jax.vmap(lambda row, at: jax.random.fold_in(jax.random.fold_in(key, row), at))(
            rows, positions
        )
        # Gumbel-max trick: the argmax of log-probabilities plus Gumbel noise is a sample of them.
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], jnp.float32))(keys)
        return jnp.argmax(filter_logits(logits / temperature, settings) + noise, axis=-1)

    chosen = jax.lax.cond(temperature > 0, sampled, lambda: jnp.argmax(logits, axis=-1))
    return chosen.astype(jnp.int32)


def filter_logits(
    logits: Float[Array, "batch vocab"], settings: Settings
) -> Float[Array, "batch vocab"]:
    """Return ``logits`` (already divided by the temperature) with -inf for filtered tokens.

    Tokens exactly as likely as the last kept one are kept as well.
    """
    _, top_k, top_p, min_p, _ = settings
    # Sorting is most of the work, so it is skipped if neither filter needs it.
    logits = jax.lax.cond(
        (top_k > 0) | (top_p < 1),
        lambda: jnp.where(logits < _threshold(logits, top_k, top_p), -jnp.inf, logits),
        lambda: logits,
    )
    best = logits.max(-1, keepdims=True)
    return jnp.where(logits < best + jnp.log(min_p), -jnp.inf, logits)


def _threshold(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Return the smallest logit that top-k and then top-p keep, (batch, 1)."""
    vocab = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(vocab)[None]
    kept = jnp.where(rank < jnp.where(top_k > 0, top_k, vocab), ordered, -jnp.inf)
    probability = jax.nn.softmax(kept, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # top_p = 1 must keep all tokens, but the rounded sum reaches 1 before the end of the tail.
    allowed = (kept > -jnp.inf) & ((before < top_p) | (top_p >= 1) | (rank == 0))
    return jnp.min(jnp.where(allowed, kept, jnp.inf), axis=-1, keepdims=True)
