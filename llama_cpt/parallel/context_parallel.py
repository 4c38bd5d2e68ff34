"""Context parallelism: rows are partitioned over the mesh axis ``context`` with balanced work.

A row is split into 2c equal chunks for c devices, and device i holds chunks i and 2c - 1 - i. This
order of the chunks is called zigzag order. Under a causal mask, the queries of a late chunk attend
to more keys than the queries of an early chunk. The zigzag order gives every device equal work.
Each device gathers the keys and values of the whole row. With grouped-query attention, keys and
values are small compared with the queries (Llama 3, arXiv 2407.21783, section 3.3.2). If the
``context`` axis is missing or has size 1, rows keep their order.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from llama_cpt.parallel.mesh import partition_spec

CONTEXT_AXIS = partition_spec("length")[0]


def context_size() -> int:
    """Return the size of the ``context`` axis of the current mesh; 1 if there is no such axis."""
    return jax.sharding.get_abstract_mesh().shape.get(CONTEXT_AXIS, 1)


def to_zigzag(x: Shaped[Array, "batch length *rest"]) -> Shaped[Array, "batch length *rest"]:
    """Reorder ``x`` along its length from the row's order to zigzag order."""

    def local(x: jax.Array) -> jax.Array:
        # Device d holds chunks 2d and 2d + 1. In a ``ppermute`` each device sends one array, so one
        # permutation moves the even chunks and a second one moves the odd chunks.
        even, odd = jnp.split(x, 2, axis=1)
        evens, odds = _moves()
        even, odd = (
            jax.lax.ppermute(even, CONTEXT_AXIS, evens),
            jax.lax.ppermute(odd, CONTEXT_AXIS, odds),
        )
        return jnp.where(_lower_is_odd(), _concatenate(odd, even), _concatenate(even, odd))

    return _per_device(local, x)


def from_zigzag(x: Shaped[Array, "batch length *rest"]) -> Shaped[Array, "batch length *rest"]:
    """Reorder ``x`` along its length from zigzag order to the row's order."""

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
    """Return the indices of the two chunks of a row that this device holds, in ascending order.

    Call this function inside ``shard_map``.
    """
    device = jax.lax.axis_index(CONTEXT_AXIS)
    return jnp.stack([device, 2 * context_size() - 1 - device])


def gather_rows(x: Shaped[Array, "batch part *rest"]) -> Shaped[Array, "batch length *rest"]:
    """Gather whole rows in the row's order from the zigzag chunks of all devices.

    Call this function inside ``shard_map``.
    """
    batch, part, *rest = x.shape
    chunks = jax.lax.all_gather(x, CONTEXT_AXIS, axis=1).reshape(batch, -1, 2, part // 2, *rest)
    # With increasing device index, the index of a device's first chunk increases, and the index of
    # its second chunk decreases.
    return _concatenate(chunks[:, :, 0], chunks[:, ::-1, 1]).reshape(batch, -1, *rest)


def _per_device(local: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Return ``local`` applied to each device's part of the rows ``x``.

    If the rows are not partitioned, returns ``x`` unchanged.
    """
    if context_size() == 1:
        return x
    spec = partition_spec("batch", "length", *[None] * (x.ndim - 2))
    return jax.shard_map(local, in_specs=spec, out_specs=spec, check_vma=False)(x)


def _moves() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the (source, target) device pairs of the two ``ppermute`` calls in ``to_zigzag``.

    The first list is for the even chunks, and the second list is for the odd chunks.
    """
    count = 2 * context_size()
    moves = [(chunk // 2, min(chunk, count - 1 - chunk)) for chunk in range(count)]
    return moves[::2], moves[1::2]


def _lower_is_odd() -> jax.Array:
    """Return whether the lower of the indices of this device's two chunks is odd.

    The lower index equals the device's index on the ``context`` axis.
    """
    return jax.lax.axis_index(CONTEXT_AXIS) % 2 == 1


def _concatenate(*chunks: jax.Array) -> jax.Array:
    return jnp.concatenate(chunks, axis=1)
