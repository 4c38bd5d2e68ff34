"""Checks of a training state: finite arrays, and a loss below that of uniform guessing."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from llama_cpt.runtime.errors import UserError

UNIFORM_SHARE = 0.99
"""A model is unhealthy if its loss is at least this fraction of a uniform distribution's loss."""


class DivergedError(UserError):
    """Error for a loss, a gradient or a state that is not finite."""


def dead_loss(vocab_size: int) -> float:
    """Return the loss per token, in nats, at or above which a model is unhealthy.

    The limit is 0.99 times the loss of a uniform distribution over the vocabulary. A trained model
    has a much smaller loss in every language. A model that was destroyed by a far too high learning
    rate has a loss at or above the limit.
    """
    return UNIFORM_SHARE * math.log(vocab_size)


def non_finite(arrays: dict[str, Any]) -> list[str]:
    """Return the names, such as ``trained/layers/query``, of arrays that contain NaN or infinity.

    The arrays are reduced on their devices. Every process gets the same names.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    finite = jax.device_get(_all_finite(leaves))
    return [name for name in leaves if not finite[name]]


@jax.jit
def _all_finite(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.all(jnp.isfinite(array)) for name, array in arrays.items()}
