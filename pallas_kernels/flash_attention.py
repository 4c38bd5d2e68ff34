"""Causal attention inside segments on TPU, over the tiles that hold a visible pair."""

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

LONGEST = 131_072
HEAD_DIMS = (64, 128, 256)
# Of a tile of queries with all heads of a step of the grid: what VMEM holds beside the rest.
_WIDEST_TILE = 512 * 1024


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
    """``reference.attention``: causal inside each segment, scaled by 1/sqrt(head_dim).

    bfloat16 or float32; ``length`` a multiple of 128 up to 131,072; ``head_dim`` 64, 128 or 256;
    ``heads`` a multiple of ``kv_heads``. ``segment_ids`` may be in any order; where equal ids lie
    side by side, as in a packed row, only tiles with a visible pair are visited. ``block_sizes``
    are the chip's own if None. ``interpret`` as in ``pallas_call``. Raises ValueError, while
    tracing, for what is not accepted.

    With ``chunks`` the queries are those of these chunks of the row only, side by side, of equal
    length, a multiple of 128 that divides the row's: chunk n begins at n times that.
    """
    _check(query, key, value, segment_ids, chunks)
    batch, queries, num_heads, head_dim = query.shape
    heads = Heads(num_heads, key.shape[2], head_dim)
    chunk = queries if chunks is None else queries // chunks.size
    sizes = _fitted(block_sizes or current_block_sizes(), chunk, heads, pads=chunks is None)
    padding = -chunk % sizes.tile
    if padding:
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (query, key, value)
        )
        # The largest id there is: no tile before needs to visit it.
        segment_ids = jnp.pad(
            segment_ids, ((0, 0), (0, padding)), constant_values=jnp.iinfo(jnp.int32).max
        )
    places = None
    if chunks is not None:
        blocks = chunk // sizes.tile
        places = (chunks[:, None] * blocks + jnp.arange(blocks)[None]).reshape(-1)
    walk = KernelConfig(heads, sizes, segment_ids.shape[1] // sizes.tile, interpret)
    flat = (x.reshape(*x.shape[:2], -1) for x in (query, key, value))
    out = _attention(*flat, Rows(segment_ids, places), walk)
    return out.reshape(batch, -1, num_heads, head_dim)[:, :queries]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    query: jax.Array, key: jax.Array, value: jax.Array, rows: Rows, walk: KernelConfig
) -> jax.Array:
    return attend_forward(query, key, value, rows, walk).out


def _attention_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, rows: Rows, walk: KernelConfig
) -> tuple[jax.Array, Residuals]:
    saved = attend_forward(query, key, value, rows, walk)
    return saved.out, saved


def _attention_backward(walk: KernelConfig, saved: Residuals, out_gradient: jax.Array) -> tuple:
    return (*attend_backward(saved, out_gradient, walk), None)


_attention.defvjp(_attention_forward, _attention_backward)


def _fitted(sizes: BlockSizes, length: int, heads: Heads, *, pads: bool) -> BlockSizes:
    """``sizes`` for short rows and for many heads a step."""
    tile = min(sizes.tile, length)
    rest = -length % tile
    if rest and (not pads or rest * 8 > length):
        # Padding is not possible, or would cost more than small tiles.
        tile = next(n for n in range(tile, 0, -LANES) if length % n == 0)
    while tile > LANES and tile * heads.together * heads.head_dim > _WIDEST_TILE:
        tile = tile // 2 // LANES * LANES
    parts = (min(part, tile) for part in (sizes.forward_queries, sizes.backward_queries))
    # A row of 384 in parts of 256 would leave a rest.
    forward, backward = (part if tile % part == 0 else LANES for part in parts)
    return replace(sizes, tile=tile, forward_queries=forward, backward_queries=backward)


def refusal(length: int, head_dim: int) -> str | None:
    """What ``flash_attention`` has against rows of ``length`` and heads of ``head_dim``, if any."""
    if head_dim not in HEAD_DIMS:
        return f"head_dim must be one of {HEAD_DIMS}; it is {head_dim}"
    if length % LANES or not LANES <= length <= LONGEST:
        return f"length must be a multiple of {LANES} up to {LONGEST}; it is {length}"
    return None


def _check(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    chunks: jax.Array | None,
) -> None:
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(
            "query must be (batch, length, heads, head_dim), key and value (batch, length, "
            f"kv_heads, head_dim); they are {query.shape}, {key.shape} and {value.shape}."
        )
    if 0 in query.shape + key.shape:
        raise ValueError(f"no dimension may be empty; query is {query.shape}, key {key.shape}.")
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
            f"the {queries} queries must be {chunks.size} chunks of a multiple of {LANES} that "
            f"divides the row's length, {length}."
        )
    if heads % key.shape[2]:
        raise ValueError(f"heads ({heads}) must be a multiple of kv_heads ({key.shape[2]}).")
    if refused := refusal(length, head_dim):
        raise ValueError(f"{refused}.")
    kinds = {x.dtype for x in (query, key, value)}
    if len(kinds) > 1 or kinds.pop() not in (jnp.bfloat16, jnp.float32):
        raise ValueError(
            "query, key and value must all be bfloat16 or all float32; they are "
            f"{query.dtype}, {key.dtype} and {value.dtype}."
        )
    if segment_ids.shape != (batch, length) or segment_ids.dtype != jnp.int32:
        raise ValueError(
            f"segment_ids must be int32 {(batch, length)}; they are {segment_ids.dtype} "
            f"{segment_ids.shape}."
        )
