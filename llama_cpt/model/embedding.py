"""Embedding lookup and its gradient, each device working on its share of the table's rows.

The sharding is explicit because the partitioner replicates the activations to look them up in a
table that is sliced both ways. The gradient is explicit because a sum in bfloat16 loses what
frequent tokens add: once a sum is large, further terms are rounded away.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.parallel.mesh import partition_spec
from llama_cpt.parallel.vocab_parallel import VOCAB_AXIS, VocabGroups, make_vocab_groups

# The scatter of the gradient sorts float32 copies of the tokens' rows, twice the size of bfloat16,
# so a token counts double in the choice of how many neighbors share the tokens.
SCATTER_COPIES = 2


# Saves the tokens alone: the gradient of a lookup does not depend on the table.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(
    table: Float[Array, "vocab embed"], tokens: Int[Array, "batch length"], dtype: Any
) -> Float[Array, "batch length embed"]:
    """Return ``table[tokens]`` in ``dtype``; the gradient of the table is summed in float32."""
    if jax.sharding.get_abstract_mesh().empty:
        return table[tokens].astype(dtype)

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        groups = _groups(table.shape[0], tokens)
        table = groups.gather_rows(table, dtype)
        ids = groups.local_ids(groups.gather_tokens(tokens), table.shape[0])
        # One share holds a token's row, and the others contribute zeros to the sum.
        return groups.scatter_tokens(table.at[ids].get(mode="fill", fill_value=0))

    return jax.shard_map(
        local,
        in_specs=(partition_spec("vocab", "embed"), partition_spec("batch", "length")),
        out_specs=partition_spec("batch", "length", "act_embed"),
        check_vma=False,
    )(table, tokens)


def _forward(table: jax.Array, tokens: jax.Array, dtype: Any) -> tuple:
    # An empty array carries the number of rows and the type without keeping the table alive.
    return lookup(table, tokens, dtype), (tokens, jnp.zeros((table.shape[0], 0), table.dtype))


def _backward(dtype: Any, saved: tuple, cotangent: jax.Array) -> tuple:
    tokens, like = saved
    vocab, zeros = like.shape[0], partial(jnp.zeros, dtype=like.dtype)
    if jax.sharding.get_abstract_mesh().empty:
        table = zeros((vocab, cotangent.shape[-1]))
        return table.at[tokens].add(cotangent.astype(like.dtype)), None
    slices = jax.sharding.get_abstract_mesh().shape[VOCAB_AXIS]

    def local(tokens: jax.Array, cotangent: jax.Array) -> jax.Array:
        groups = _groups(vocab // slices, tokens)
        table = zeros((vocab // slices // groups.size, cotangent.shape[-1]))
        ids = groups.local_ids(groups.gather_tokens(tokens), table.shape[0])
        added = groups.gather_tokens(cotangent).astype(table.dtype)
        return groups.scatter_rows(table.at[ids].add(added, mode="drop"))

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


def _groups(rows: int, tokens: jax.Array) -> VocabGroups:
    return make_vocab_groups(rows, SCATTER_COPIES * tokens.size)
