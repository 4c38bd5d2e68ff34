"""Embedding lookup and its gradient, partitioned by vocabulary parallelism.

The partitioning is explicit. XLA's partitioner would replicate the activations, because the table
is partitioned along both dimensions. The gradient is explicit as well, so that it is summed in
float32. A bfloat16 sum stops growing once it is large, so the gradients of frequent tokens would be
too small.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.parallel.mesh import partition_spec
from llama_cpt.parallel.vocab_parallel import VOCAB_AXIS, VocabGroups, make_vocab_groups

# Weight of a token in the choice of the group size (``make_vocab_groups``). The scatter of the
# gradient sorts float32 copies of the tokens' activations, which take twice as many bytes as the
# bfloat16 activations.
SCATTER_COPIES = 2


# Custom VJP: on a mesh, the lookup casts the table to ``dtype`` before the collectives, so
# automatic differentiation would sum the table's gradient in bfloat16. Only the tokens are saved
# for the backward pass, because the gradient of a lookup does not depend on the table.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(
    table: Float[Array, "vocab embed"], tokens: Int[Array, "batch length"], dtype: Any
) -> Float[Array, "batch length embed"]:
    """Return ``table[tokens]`` in ``dtype``.

    The gradient of the table is summed in the dtype of the table, which is float32 in a model.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return table[tokens].astype(dtype)

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        groups = _groups(table.shape[0], tokens)
        table = groups.gather_rows(table, dtype)
        ids = groups.local_ids(groups.gather_tokens(tokens), table.shape[0])
        # Exactly one device of the group holds the row of a token; the other devices add zeros.
        return groups.scatter_tokens(table.at[ids].get(mode="fill", fill_value=0))

    return jax.shard_map(
        local,
        in_specs=(partition_spec("vocab", "embed"), partition_spec("batch", "length")),
        out_specs=partition_spec("batch", "length", "act_embed"),
        check_vma=False,
    )(table, tokens)


def _forward(
    table: jax.Array, tokens: jax.Array, dtype: Any
) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    # The backward pass needs the table's number of rows and its dtype, but not its values. An array
    # of shape (vocab, 0) has both and does not keep the table alive.
    return lookup(table, tokens, dtype), (tokens, jnp.zeros((table.shape[0], 0), table.dtype))


def _backward(
    dtype: Any, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, None]:
    # For the cotangent g (batch, length, embed), the gradient of row v of the table is the sum of
    # g over all positions whose token is v: a scatter-add. The tokens have no gradient.
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
        # The gather moves the cotangent in bfloat16; the addition is in float32. Ids that are out
        # of range belong to rows of a different device and are dropped.
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
