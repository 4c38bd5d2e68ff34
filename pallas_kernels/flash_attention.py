"""Flash attention for packed rows on TPUs, which skips tiles that are masked completely.

A query attends to the keys of its segment up to its own position; these keys are visible to the
query. A tile is a block of queries and a block of keys. The entry point ``flash_attention`` checks
the shapes, selects the block sizes, and pads rows to whole tiles. The kernels are in
``attention_forward`` and ``attention_backward``. docs/notes/kernels.md describes the schedule of
the kernels.
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
# Maximum number of elements in the query block of a grid step, which has several heads. With this
# size, the block fits VMEM together with the kernels' other buffers.
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
    """Return softmax(Q K^T / sqrt(head_dim)) V, causal within each segment.

    The result equals that of ``reference.attention`` up to rounding, but is computed without
    storing the matrix of scores (FlashAttention-2, Dao 2023, arXiv 2307.08691). The result has the
    shape and dtype of ``query``.

    Args:
        query: Queries in bfloat16 or float32. ``heads`` is a multiple of ``kv_heads``, and
            ``head_dim`` is 64, 128 or 256.
        key: Keys in the dtype of ``query``. ``length`` is a multiple of 128 and at most 131,072.
        value: Values in the dtype of ``query``.
        segment_ids: Segment ids in int32, in any order. If equal ids are adjacent, as in a packed
            row, the kernels compute only tiles in which a query attends to a key.
        chunks: None if ``query`` contains the queries of the whole row. Otherwise the row is
            divided into chunks of equal length, a multiple of 128. ``chunks`` contains the indices
            of some of these chunks, and ``query`` is the concatenation of their queries.
        block_sizes: Block sizes of the kernels. None selects the sizes for the current chip.
        interpret: Option ``interpret`` of ``pallas_call``, to run the kernels without a TPU.

    Raises:
        ValueError: While tracing, if a shape or a dtype is not supported.
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
        # The padding gets the largest int32 as its id. Real tokens do not have this id, so the
        # padding adds no tiles except for its own queries.
        segment_ids = jnp.pad(
            segment_ids, ((0, 0), (0, padding)), constant_values=jnp.iinfo(jnp.int32).max
        )
    query_blocks = None
    if chunks is not None:
        blocks = chunk // sizes.tile
        query_blocks = (chunks[:, None] * blocks + jnp.arange(blocks)[None]).reshape(-1)
    config = KernelConfig(heads, sizes, segment_ids.shape[1] // sizes.tile, interpret)
    # The kernels' arrays have one dimension for heads and head_dim (see ``Heads``). This reshape
    # copies nothing.
    flat = (x.reshape(*x.shape[:2], -1) for x in (query, key, value))
    out = _attention(*flat, Rows(segment_ids, query_blocks), config)
    assert isinstance(out, jax.Array)
    return out.reshape(batch, -1, num_heads, head_dim)[:, :queries]


# Custom VJP: JAX cannot differentiate the forward kernel, so a second kernel computes the
# gradients. The forward pass saves the operands, the output and one statistic per query and head
# (``Residuals``). The backward kernel recomputes the probabilities from them, tile by tile.
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
    # ``rows`` contains integers, so its gradient is None.
    return (*attend_backward(saved, out_gradient, config), None)


_attention.defvjp(_attention_forward, _attention_backward)


def _fit_sizes(sizes: BlockSizes, length: int, heads: Heads, *, pads: bool) -> BlockSizes:
    """Return ``sizes`` with tiles that fit the chunks and VMEM.

    ``length`` is the length of a chunk, or the length of the row if there are no chunks. ``pads``
    states whether the length can be padded to whole tiles.
    """
    tile = min(sizes.tile, length)
    rest = -length % tile
    if rest and (not pads or rest * 8 > length):
        # Chunks cannot be padded. A row is padded only by up to an eighth of its length, because
        # more padding would cost more than smaller tiles.
        tile = next(n for n in range(tile, 0, -LANES) if length % n == 0)
    while tile > LANES and tile * heads.heads_per_step * heads.head_dim > _MAX_TILE_ELEMENTS:
        tile = tile // 2 // LANES * LANES
    parts = (min(part, tile) for part in (sizes.forward_queries, sizes.backward_queries))
    # The size of a part must divide the tile. For example, a tile of 384 queries cannot have parts
    # of 256, so its parts have 128.
    forward, backward = (part if tile % part == 0 else LANES for part in parts)
    return replace(sizes, tile=tile, forward_queries=forward, backward_queries=backward)


def refusal(length: int, head_dim: int) -> str | None:
    """Return the reason why ``flash_attention`` does not support ``length`` or ``head_dim``.

    The reason is a clause for an error message. Returns None if both values are supported.
    """
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
    """Raise ValueError if the shapes or dtypes of ``flash_attention``'s arguments are invalid."""
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
