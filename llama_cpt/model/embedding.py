"""Rows of the embedding table, looked up and differentiated on each device's share of them.

By hand, because the partitioner replicates the activations to look them up in a table that is
sliced both ways, and because a gradient summed in bfloat16 loses what frequent tokens add.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.parallel.mesh import partition_spec
from llama_cpt.parallel.vocab_parallel import VOCAB_AXIS, VocabGroups, make_vocab_groups

# The gradient's scatter sorts float32 copies of the tokens' rows: fewer neighbours share them.
COPIES = 2


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(
    table: Float[Array, "vocab embed"], tokens: Int[Array, "batch length"], dtype: Any
) -> Float[Array, "batch length embed"]:
    """``table[tokens]`` in ``dtype``; the table's gradient is summed in float32."""
    if jax.sharding.get_abstract_mesh().empty:
        return table[tokens].astype(dtype)

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        near = _sharers(table.shape[0], tokens)
        table = near.gather_rows(table, dtype)
        ids = near.local_ids(near.gather_tokens(tokens), table.shape[0])
        # One share has the row, the others add zeros.
        return near.scatter_tokens(table.at[ids].get(mode="fill", fill_value=0))

    return jax.shard_map(
        local,
        in_specs=(partition_spec("vocab", "embed"), partition_spec("batch", "length")),
        out_specs=partition_spec("batch", "length", "act_embed"),
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
        near = _sharers(vocab // slices, tokens)
        table = zeros((vocab // slices // near.size, cotangent.shape[-1]))
        ids = near.local_ids(near.gather_tokens(tokens), table.shape[0])
        added = near.gather_tokens(cotangent).astype(table.dtype)
        return near.scatter_rows(table.at[ids].add(added, mode="drop"))

    table = jax.shard_map(
        local,
        in_specs=(
            partition_spec("batch", "length"),
            partition_spec("batch", "length", "act_embed"),
        ),
        out_specs=partition_spec("vocab", "embed"),
        check_vma=False,
    )(tokens, cotangent)
    return table, None


lookup.defvjp(_forward, _backward)


def _sharers(rows: int, tokens: jax.Array) -> VocabGroups:
    return make_vocab_groups(rows, COPIES * tokens.size)
