"""Rows of the embedding table, looked up and differentiated on each device's slice.

By hand, because the partitioner replicates the activations to look them up in a table that is
sliced both ways, and because a gradient summed in bfloat16 loses what frequent tokens add.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.sharding import spec

# Where the table's two dims lie (sharding.AXIS_RULES).
VOCAB_AXIS, EMBED_AXIS = spec("vocab", "embed")


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(
    table: Float[Array, "vocab embed"], tokens: Int[Array, "batch length"], dtype: Any
) -> Float[Array, "batch length embed"]:
    """``table[tokens]`` in ``dtype``; the table's gradient is summed in float32."""
    if jax.sharding.get_abstract_mesh().empty:
        return table[tokens].astype(dtype)

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        table = jax.lax.all_gather(table.astype(dtype), EMBED_AXIS, axis=1, tiled=True)
        rows = table.at[_local_ids(tokens, table.shape[0])].get(mode="fill", fill_value=0)
        return jax.lax.psum(rows, VOCAB_AXIS)

    return jax.shard_map(
        local,
        in_specs=(spec("vocab", "embed"), spec("batch", "length")),
        out_specs=spec("batch", "length", "act_embed"),
        check_vma=False,
    )(table, tokens)


def _forward(table: jax.Array, tokens: jax.Array, dtype: Any) -> tuple:
    # An empty array carries the table's shape and type without holding the table.
    return lookup(table, tokens, dtype), (tokens, jnp.zeros((table.shape[0], 0), table.dtype))


def _backward(dtype: Any, saved: tuple, cotangent: jax.Array) -> tuple:
    tokens, like = saved
    vocab, zeros = like.shape[0], partial(jnp.zeros, dtype=like.dtype)
    if jax.sharding.get_abstract_mesh().empty:
        table = zeros((vocab, cotangent.shape[-1]))
        return table.at[tokens].add(cotangent.astype(like.dtype)), None
    slices = jax.sharding.get_abstract_mesh().shape[VOCAB_AXIS]

    def local(tokens: jax.Array, cotangent: jax.Array) -> jax.Array:
        table = zeros((vocab // slices, cotangent.shape[-1]))
        ids = _local_ids(tokens, table.shape[0])
        table = table.at[ids].add(cotangent.astype(table.dtype), mode="drop")
        table = jax.lax.psum_scatter(table, EMBED_AXIS, scatter_dimension=1, tiled=True)
        return jax.lax.psum(table, "replica")

    table = jax.shard_map(
        local,
        in_specs=(spec("batch", "length"), spec("batch", "length", "act_embed")),
        out_specs=spec("vocab", "embed"),
        check_vma=False,
    )(tokens, cotangent)
    return table, None


lookup.defvjp(_forward, _backward)


def _local_ids(tokens: jax.Array, rows: int) -> jax.Array:
    """Ids within this device's slice of the vocabulary; ``rows`` where another has the token."""
    ids = tokens - jax.lax.axis_index(VOCAB_AXIS) * rows
    return jnp.where((ids >= 0) & (ids < rows), ids, rows)
