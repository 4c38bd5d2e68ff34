"""The forward kernel of attention: softmax by tiles, running maximum and sum (arXiv 1805.02867)."""

import functools
import itertools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention_parts import (
    LANES,
    LOG2_E,
    MASK_VALUE,
    VMEM_BYTES,
    KernelConfig,
    Residuals,
    Rows,
    column,
    dispatch_by_mask,
    dot,
    software_pipeline,
)
from pallas_kernels.tiles import FIRST, LAST, needed_tiles, unpack


# Traced once: a kernel's body names the lines that led to its trace, and the compiler takes two
# kernels for one only where these agree. A step has this one forward and again going backward.
@functools.partial(jax.jit, static_argnames="walk", inline=True)
def attend_forward(
    query: Float[Array, "batch queries heads_x_dim"],
    key: Float[Array, "batch length kv_heads_x_dim"],
    value: Float[Array, "batch length kv_heads_x_dim"],
    rows: Rows,
    walk: KernelConfig,
) -> Residuals:
    """The output among what is saved; ``walk`` says how the heads lie."""
    heads, sizes, specs = walk.heads, walk.sizes, walk.specs
    batch, length, _ = query.shape
    table = needed_tiles(rows.segment_ids, sizes.tile, places=rows.places)
    together, width = heads.together, heads.together * heads.head_dim
    out, log_sum = pl.pallas_call(
        functools.partial(_kernel, walk=walk),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(heads.steps, table.count),
            in_specs=[
                specs.query(),
                specs.key(),
                specs.key(),
                specs.query_ids(),
                specs.key_ids(),
            ],
            out_specs=[specs.query(), specs.log_sums()],
            scratch_shapes=[
                pltpu.VMEM((sizes.tile, width), query.dtype),
                pltpu.VMEM((sizes.tile, LANES), jnp.int32),
                pltpu.VMEM((together, sizes.tile, LANES), jnp.float32),
                pltpu.VMEM((together, sizes.tile, LANES), jnp.float32),
                pltpu.VMEM((sizes.tile, width), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads.steps, together, length), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=walk.interpret,
        name="flash_attention_forward",
    )(table.entries, query, key, value, rows.query_ids(sizes.tile), rows.key_ids())
    return Residuals(query, key, value, rows, out, log_sum)


def _kernel(  # noqa: C901, PLR0913 - a ref for each operand, a step for each flag
    table: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    q_ids_ref: Any,
    k_ids_ref: Any,
    out_ref: Any,
    log_sum_ref: Any,
    scaled_ref: Any,
    q_column_ref: Any,
    max_ref: Any,
    sum_ref: Any,
    total_ref: Any,
    *,
    walk: KernelConfig,
) -> None:
    heads, sizes = walk.heads, walk.sizes
    flags = unpack(table[pl.program_id(1)], walk.blocks).flags
    size, part = sizes.tile, sizes.forward_queries

    @pl.when(flags & FIRST != 0)
    def start() -> None:
        # Base-2 exponents: the scale and log2(e) go into the query once.
        scale = LOG2_E * heads.head_dim**-0.5
        scaled_ref[...] = (q_ref[0].astype(jnp.float32) * scale).astype(scaled_ref.dtype)
        q_column_ref[...] = column(q_ids_ref[0])
        max_ref[...] = jnp.full_like(max_ref, MASK_VALUE)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        total_ref[...] = jnp.zeros_like(total_ref)

    def tile(crossing: bool, diagonal: bool) -> None:
        def scores(head: int, begin: int) -> jax.Array:
            keys = begin + part if diagonal else size
            rows = slice(begin, begin + part)
            s = dot(scaled_ref[rows, heads.at(head)], k_ref[0, :keys, heads.key_at(head)], (1, 1))
            if crossing:
                q_ids = jnp.tile(q_column_ref[rows], (1, keys // LANES))
                visible = q_ids == k_ids_ref[0, :, :keys]
                if diagonal:
                    q_place = begin + jax.lax.broadcasted_iota(jnp.int32, s.shape, 0)
                    visible &= q_place >= jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
                s = jnp.where(visible, s, MASK_VALUE)
            return s

        parts = list(itertools.product(range(heads.together), range(0, size, part)))
        for (head, begin), s in software_pipeline(scores, parts, sizes.forward_ahead):
            keys, rows = s.shape[1], slice(begin, begin + part)
            before = max_ref[head, rows]
            now = jnp.maximum(before, s.max(-1, keepdims=True))
            p = jnp.exp2(s - jnp.tile(now, (1, keys // LANES)))
            fading = jnp.exp2(before - now)
            max_ref[head, rows] = now
            # Lane by lane: summing over lanes can wait for the last tile.
            sums = sum(p[:, lane : lane + LANES] for lane in range(0, keys, LANES))
            sum_ref[head, rows] = sum_ref[head, rows] * fading + sums
            seen = dot(p.astype(v_ref.dtype), v_ref[0, :keys, heads.key_at(head)], (1, 0))
            at = rows, heads.at(head)
            total_ref[at] = total_ref[at] * _lanes(fading, heads.head_dim) + seen

    dispatch_by_mask(flags, tile)

    @pl.when(flags & LAST != 0)
    def end() -> None:
        for head in range(heads.together):
            at, total = heads.at(head), sum_ref[head].sum(-1, keepdims=True)
            out = total_ref[:, at] / total
            out_ref[0, :, at] = out.astype(out_ref.dtype)
            log_sum_ref[0, 0, head : head + 1] = (max_ref[head] + jnp.log2(total)).T[:1]


def _lanes(x: jax.Array, count: int) -> jax.Array:
    """(n, 128), all columns equal -> (n, count)."""
    return x[:, :count] if count <= LANES else jnp.tile(x, (1, count // LANES))
