"""Rows over the mesh's ``context`` axis, cut so that causal attention is equal work for all.

A row is 2c equal chunks on c devices; device i has chunks i and 2c - 1 - i, side by side, so that
what the first spares the second needs, and all keys are gathered, few beside the queries where
heads share them (Llama 3, arXiv 2407.21783, section 3.3.2). Without such an axis, or with one
device on it, rows stay as they are.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from llama_cpt.parallel.mesh import partition_spec

CONTEXT_AXIS = partition_spec("length")[0]


def context_size() -> int:
    """Devices over which the current mesh cuts a row."""
    return jax.sharding.get_abstract_mesh().shape.get(CONTEXT_AXIS, 1)


def to_zigzag(x: Shaped[Array, "batch length *rest"]) -> Shaped[Array, "batch length *rest"]:
    """From the row's own order."""

    def local(x: jax.Array) -> jax.Array:
        even, odd = jnp.split(x, 2, axis=1)
        evens, odds = _moves()
        even, odd = (
            jax.lax.ppermute(even, CONTEXT_AXIS, evens),
            jax.lax.ppermute(odd, CONTEXT_AXIS, odds),
        )
        return jnp.where(_lower_is_odd(), _beside(odd, even), _beside(even, odd))

    return _moved(local, x)


def from_zigzag(x: Shaped[Array, "batch length *rest"]) -> Shaped[Array, "batch length *rest"]:
    """Back to the row's own order."""

    def local(x: jax.Array) -> jax.Array:
        lower, upper = jnp.split(x, 2, axis=1)
        turned = _lower_is_odd()
        even, odd = jnp.where(turned, upper, lower), jnp.where(turned, lower, upper)
        evens, odds = ([(there, here) for here, there in moves] for moves in _moves())
        return _beside(
            jax.lax.ppermute(even, CONTEXT_AXIS, evens), jax.lax.ppermute(odd, CONTEXT_AXIS, odds)
        )

    return _moved(local, x)


def local_chunks() -> Int[Array, "2"]:
    """The two chunks of a row that this device has; inside ``shard_map``."""
    here = jax.lax.axis_index(CONTEXT_AXIS)
    return jnp.stack([here, 2 * context_size() - 1 - here])


def gather_rows(x: Shaped[Array, "batch part *rest"]) -> Shaped[Array, "batch length *rest"]:
    """The whole row in its own order from every device's chunks of it; inside ``shard_map``."""
    batch, part, *rest = x.shape
    found = jax.lax.all_gather(x, CONTEXT_AXIS, axis=1).reshape(batch, -1, 2, part // 2, *rest)
    return _beside(found[:, :, 0], found[:, ::-1, 1]).reshape(batch, -1, *rest)


def _moved(local: Callable, x: jax.Array) -> jax.Array:
    if context_size() == 1:
        return x
    place = partition_spec("batch", "length", *[None] * (x.ndim - 2))
    return jax.shard_map(local, in_specs=place, out_specs=place, check_vma=False)(x)


def _moves() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Of the even chunks and of the odd: (device in the row's order, device in zig-zag order)."""
    count = 2 * context_size()
    moves = [(chunk // 2, min(chunk, count - 1 - chunk)) for chunk in range(count)]
    return moves[::2], moves[1::2]


def _lower_is_odd() -> jax.Array:
    return jax.lax.axis_index(CONTEXT_AXIS) % 2 == 1


def _beside(*chunks: jax.Array) -> jax.Array:
    return jnp.concatenate(chunks, axis=1)
