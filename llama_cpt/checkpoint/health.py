"""Health of a training state: whether its arrays are finite and its loss beats guessing."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from llama_cpt.runtime.errors import UserError

UNIFORM_SHARE = 0.99
"""Fraction of the loss of a uniform distribution at which a model counts as dead."""


class DivergedError(UserError):
    """Error for a loss, a gradient or a state that is not finite."""


def dead_loss(vocab_size: int) -> float:
    """Return the loss per token, in nats, from which a model is no better than uniform guesses.

    A model that was trained at all is far below it, whatever its language. One destroyed by a
    learning rate that is far too large is at or above it.
    """
    return UNIFORM_SHARE * math.log(vocab_size)


def non_finite(arrays: dict[str, Any]) -> list[str]:
    """Return the names, such as ``trained/layers/query``, of arrays that hold NaN or infinity.

    The reduction runs on the devices that hold the arrays, and every process gets the same names.
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
