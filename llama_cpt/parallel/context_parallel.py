"""Context parallelism: rows cut over the mesh's ``context`` axis, equal work for each device.

A row is 2c equal chunks on c devices; device i has chunks i and 2c - 1 - i (zigzag order). Under a
causal mask a late chunk sees more keys than an early one, and the two of a device add up to the
same work for all. Every device gathers the keys and values of the whole row, which are few compared
with the queries if heads share them (Llama 3, arXiv 2407.21783, section 3.3.2). Without a
``context`` axis, or with one device on it, rows stay in their own order.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from llama_cpt.parallel.mesh import partition_spec

CONTEXT_AXIS = partition_spec("length")[0]


def context_size() -> int:
    """Return the number of devices over which the current mesh cuts a row."""
    return jax.sharding.get_abstract_mesh().shape.get(CONTEXT_AXIS, 1)


def to_zigzag(x: Shaped[Array, "batch length *rest"]) -> Shaped[Array, "batch length *rest"]:
    """Return ``x``, in the row's own order, in zigzag order."""

    def local(x: jax.Array) -> jax.Array:
        # Device d holds chunks 2d and 2d + 1. A permutation sends one chunk per device, so the even
        # chunks move in one and the odd chunks in another.
        even, odd = jnp.split(x, 2, axis=1)
        evens, odds = _moves()
        even, odd = (
            jax.lax.ppermute(even, CONTEXT_AXIS, evens),
            jax.lax.ppermute(odd, CONTEXT_AXIS, odds),
        )
        return jnp.where(_lower_is_odd(), _concatenate(odd, even), _concatenate(even, odd))

    return _per_device(local, x)


def from_zigzag(x: Shaped[Array, "batch length *rest"]) -> Shaped[Array, "batch length *rest"]:
    """Return ``x``, in zigzag order, in the row's own order."""

    def local(x: jax.Array) -> jax.Array:
        lower, upper = jnp.split(x, 2, axis=1)
        swapped = _lower_is_odd()
        even, odd = jnp.where(swapped, upper, lower), jnp.where(swapped, lower, upper)
        evens, odds = ([(target, source) for source, target in moves] for moves in _moves())
        return _concatenate(
            jax.lax.ppermute(even, CONTEXT_AXIS, evens), jax.lax.ppermute(odd, CONTEXT_AXIS, odds)
        )

    return _per_device(local, x)


def local_chunks() -> Int[Array, "2"]:
    """Return the numbers of the two chunks of a row that this device holds, in ``shard_map``."""
    device = jax.lax.axis_index(CONTEXT_AXIS)
    return jnp.stack([device, 2 * context_size() - 1 - device])


def gather_rows(x: Shaped[Array, "batch part *rest"]) -> Shaped[Array, "batch length *rest"]:
    """Gather the whole row, in its own order, from the chunks of all devices, in ``shard_map``."""
    batch, part, *rest = x.shape
    chunks = jax.lax.all_gather(x, CONTEXT_AXIS, axis=1).reshape(batch, -1, 2, part // 2, *rest)
    # The first chunks ascend with the device, and the second ones descend.
    return _concatenate(chunks[:, :, 0], chunks[:, ::-1, 1]).reshape(batch, -1, *rest)


def _per_device(local: Callable, x: jax.Array) -> jax.Array:
    """Run ``local`` on each device's part of the rows ``x``."""
    if context_size() == 1:
        return x
    spec = partition_spec("batch", "length", *[None] * (x.ndim - 2))
    return jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False)(x)


def _moves() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (source, target) devices of the even chunks and of the odd ones, into zigzag order."""
    count = 2 * context_size()
    moves = [(chunk // 2, min(chunk, count - 1 - chunk)) for chunk in range(count)]
    return moves[::2], moves[1::2]


def _lower_is_odd() -> jax.Array:
    """Return whether the lower of this device's two chunks, chunk ``axis_index``, is an odd one."""
    return jax.lax.axis_index(CONTEXT_AXIS) % 2 == 1


def _concatenate(*chunks: jax.Array) -> jax.Array:
    return jnp.concatenate(chunks, axis=1)
