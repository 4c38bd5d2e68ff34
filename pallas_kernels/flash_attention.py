"""Flash attention for packed rows on TPUs: causal inside each segment, over the needed tiles only.

The entry point ``flash_attention`` checks shapes, fits the block sizes and pads short rows. The
kernels are in ``attention_forward`` and ``attention_backward``; docs/notes/kernels.md has the
schedule.
"""

from dataclasses import replace
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention_backward import attend_backward
from pallas_kernels.attention_forward import attend_forward
from pallas_kernels.attention_parts import LANES, Heads, KernelConfig, Residuals, Rows
from pallas_kernels.block_sizes import BlockSizes, current_block_sizes

MAX_LENGTH = 131_072
HEAD_DIMS = (64, 128, 256)
# Elements of a tile of queries with all heads of a step of the grid: what VMEM holds next to the
# other buffers.
_MAX_TILE_ELEMENTS = 512 * 1024


def flash_attention(
    query: Float[Array, "batch queries heads head_dim"],
    key: Float[Array, "batch length kv_heads head_dim"],
    value: Float[Array, "batch length kv_heads head_dim"],
    segment_ids: Int[Array, "batch length"],
    *,
    chunks: Int[Array, " chunks"] | None = None,
    block_sizes: BlockSizes | None = None,
    interpret: Any = False,
) -> Float[Array, "batch queries heads head_dim"]:
    """Return softmax(Q K^T / sqrt(head_dim)) V, causal inside each segment.

    Computes what ``reference.attention`` computes, without the matrix of scores (FlashAttention-2,
    Dao 2023, arXiv 2307.08691). The result has the shape and type of ``query``.

    Args:
        query: bfloat16 or float32; ``heads`` is a multiple of ``kv_heads``, and ``head_dim`` is 64,
            128 or 256.
        key: The keys in the type of ``query``; ``length`` is a multiple of 128 up to 131,072.
        value: The values in the type of ``query``.
        segment_ids: int32 in any order. If equal ids are adjacent, as in a packed row, only tiles
            with a visible pair are visited.
        chunks: Numbers of the row's chunks that the queries are, one after the other; None if they
            are the whole row. Chunk n begins at n times the length of a chunk, a multiple of 128
            that divides ``length``.
        block_sizes: Sizes of the tiles; None selects those of the chip.
        interpret: Option of ``pallas_call`` that runs the kernels without a TPU.

    Raises:
        ValueError: If a shape or a type is not supported, while tracing.
    """
    _check(query, key, value, segment_ids, chunks)
    batch, queries, num_heads, head_dim = query.shape
    heads = Heads(num_heads, key.shape[2], head_dim)
    chunk = queries if chunks is None else queries // chunks.size
    sizes = _fit_sizes(block_sizes or current_block_sizes(), chunk, heads, pads=chunks is None)
    padding = -chunk % sizes.tile
    if padding:
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (query, key, value)
        )
        # Padding gets the largest id, which no earlier tile shares, so only its own tiles visit it.
        segment_ids = jnp.pad(
            segment_ids, ((0, 0), (0, padding)), constant_values=jnp.iinfo(jnp.int32).max
        )
    query_blocks = None
    if chunks is not None:
        blocks = chunk // sizes.tile
        query_blocks = (chunks[:, None] * blocks + jnp.arange(blocks)[None]).reshape(-1)
    config = KernelConfig(heads, sizes, segment_ids.shape[1] // sizes.tile, interpret)
    # Heads and head_dim become one dimension without a copy; see ``Heads``.
    flat = (x.reshape(*x.shape[:2], -1) for x in (query, key, value))
    out = _attention(*flat, Rows(segment_ids, query_blocks), config)
    return out.reshape(batch, -1, num_heads, head_dim)[:, :queries]


# Differentiated by a second kernel, because JAX cannot differentiate the forward kernel. It saves
# the operands, the output and one statistic per query, and recomputes the probabilities.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    query: jax.Array, key: jax.Array, value: jax.Array, rows: Rows, config: KernelConfig
) -> jax.Array:
    return attend_forward(query, key, value, rows, config).out


def _attention_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, rows: Rows, config: KernelConfig
) -> tuple[jax.Array, Residuals]:
    saved = attend_forward(query, key, value, rows, config)
    return saved.out, saved


def _attention_backward(config: KernelConfig, saved: Residuals, out_gradient: jax.Array) -> tuple:
    # ``rows`` are integers and have no gradient.
    return (*attend_backward(saved, out_gradient, config), None)


_attention.defvjp(_attention_forward, _attention_backward)


def _fit_sizes(sizes: BlockSizes, length: int, heads: Heads, *, pads: bool) -> BlockSizes:
    """Return ``sizes`` reduced for short rows and for many heads per step of the grid."""
    tile = min(sizes.tile, length)
    rest = -length % tile
    if rest and (not pads or rest * 8 > length):
        # Queries that are chunks cannot be padded, and padding by more than an eighth would cost
        # more than smaller tiles do.
        tile = next(n for n in range(tile, 0, -LANES) if length % n == 0)
    while tile > LANES and tile * heads.heads_per_step * heads.head_dim > _MAX_TILE_ELEMENTS:
        tile = tile // 2 // LANES * LANES
    parts = (min(part, tile) for part in (sizes.forward_queries, sizes.backward_queries))
    # Parts must divide the tile: a tile of 384 in parts of 256 would leave a remainder.
    forward, backward = (part if tile % part == 0 else LANES for part in parts)
    return replace(sizes, tile=tile, forward_queries=forward, backward_queries=backward)


def refusal(length: int, head_dim: int) -> str | None:
    """Return why ``flash_attention`` rejects this ``length`` or ``head_dim``, or None."""
    if head_dim not in HEAD_DIMS:
        return f"head_dim={head_dim} must be one of {HEAD_DIMS}"
    if length % LANES or not LANES <= length <= MAX_LENGTH:
        return f"length={length} must be a multiple of {LANES}, at most {MAX_LENGTH}"
    return None


def _check(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    chunks: jax.Array | None,
) -> None:
    """Raise ValueError if shapes or types are not supported."""
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(
            "query must be (batch, length, heads, head_dim), key and value (batch, length, "
            f"kv_heads, head_dim); got {query.shape}, {key.shape} and {value.shape}."
        )
    if 0 in query.shape + key.shape:
        raise ValueError(
            f"dimensions must not be empty; got query {query.shape} and key {key.shape}."
        )
    batch, queries, heads, head_dim = query.shape
    length = queries if chunks is None else key.shape[1]
    if key.shape[:2] != (batch, length) or key.shape[3] != head_dim:
        raise ValueError(
            f"key {key.shape} must have the batch, length and head_dim of query {query.shape}."
        )
    if chunks is not None and (
        queries % (chunks.size * LANES) or length % (queries // chunks.size)
    ):
        raise ValueError(
            f"{queries} queries must be {chunks.size} chunks of equal length, a multiple of "
            f"{LANES} that divides the row's length {length}."
        )
    if heads % key.shape[2]:
        raise ValueError(f"heads={heads} must be a multiple of kv_heads={key.shape[2]}.")
    if refused := refusal(length, head_dim):
        raise ValueError(f"{refused}.")
    kinds = {x.dtype for x in (query, key, value)}
    if len(kinds) > 1 or kinds.pop() not in (jnp.bfloat16, jnp.float32):
        raise ValueError(
            "query, key and value must all be bfloat16 or all float32; got "
            f"{query.dtype}, {key.dtype} and {value.dtype}."
        )
    if segment_ids.shape != (batch, length) or segment_ids.dtype != jnp.int32:
        raise ValueError(
            f"segment_ids must be int32 {(batch, length)}; got {segment_ids.dtype} "
            f"{segment_ids.shape}."
        )
