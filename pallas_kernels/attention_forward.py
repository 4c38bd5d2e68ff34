"""The forward kernel of attention, which computes the softmax tile by tile.

The kernel keeps a running maximum and a running sum of exponentials for each query (online softmax,
Milakov and Gimelshein 2018, arXiv 1805.02867, algorithm 3). The grid is (steps of heads, needed
tiles). The tiles of a query block are adjacent in the table of tiles. The maximum, the sum and the
output of a query block therefore stay in VMEM until the last tile of the block is done, and are
written once.
"""

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


# A step with remat runs this kernel in the forward pass and again in the backward pass. A traced
# kernel records its traceback, and the TPU compiler merges two kernels only if their tracebacks are
# equal too. With ``jit``, JAX traces the kernel once and uses the result in both passes.
@functools.partial(jax.jit, static_argnames="config", inline=True)
def attend_forward(
    query: Float[Array, "batch queries heads_x_dim"],
    key: Float[Array, "batch length kv_heads_x_dim"],
    value: Float[Array, "batch length kv_heads_x_dim"],
    rows: Rows,
    config: KernelConfig,
) -> Residuals:
    """Return the operands, the output of attention and ``log_sum``, as Residuals.

    For query i and each key j to which it attends, let S_ij = q_i k_j / sqrt(head_dim). Then the
    output is out_i = sum_j exp(S_ij) v_j / sum_j exp(S_ij), in the dtype of ``query``. The
    statistic ``log_sum`` is log_sum_i = log2(sum_j exp(S_ij)), in float32.
    """
    heads, sizes, specs = config.heads, config.sizes, config.specs
    batch, length, _ = query.shape
    table = needed_tiles(rows.segment_ids, sizes.tile, query_blocks=rows.query_blocks)
    per_step, width = heads.heads_per_step, heads.heads_per_step * heads.head_dim
    out, log_sum = pl.pallas_call(
        functools.partial(_kernel, config=config),
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
            # In this order: the scaled queries; the segment ids of the queries as a column; the
            # running maximum of each query; the running sum of each query, as one partial sum per
            # lane; the weighted sum of the values. The sums are float32, because a bfloat16 sum
            # over thousands of keys stops growing.
            scratch_shapes=[
                pltpu.VMEM((sizes.tile, width), query.dtype),
                pltpu.VMEM((sizes.tile, LANES), jnp.int32),
                pltpu.VMEM((per_step, sizes.tile, LANES), jnp.float32),
                pltpu.VMEM((per_step, sizes.tile, LANES), jnp.float32),
                pltpu.VMEM((sizes.tile, width), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((batch, heads.steps, per_step, length), jnp.float32),
        ],
        # Steps of heads are independent. The tiles of a step of heads accumulate into the scratch
        # buffers, so they run in order.
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=config.interpret,
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
    config: KernelConfig,
) -> None:
    heads, sizes = config.heads, config.sizes
    flags = unpack(table[pl.program_id(1)], config.blocks).flags
    size, part = sizes.tile, sizes.forward_queries

    @pl.when(flags & FIRST != 0)
    def start() -> None:
        # The query is multiplied by the scale and by log2(e), because the exponentials have base 2.
        # Doing this once per query block saves a multiplication of every score.
        scale = LOG2_E * heads.head_dim**-0.5
        scaled_ref[...] = (q_ref[0].astype(jnp.float32) * scale).astype(scaled_ref.dtype)
        q_column_ref[...] = column(q_ids_ref[0])
        max_ref[...] = jnp.full_like(max_ref, MASK_VALUE)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        total_ref[...] = jnp.zeros_like(total_ref)

    def tile(crossing: bool, diagonal: bool) -> None:
        def scores(head: int, begin: int) -> jax.Array:
            # On the diagonal, keys after the last query of a part are invisible to the whole part,
            # so they are left out of the product.
            keys = begin + part if diagonal else size
            rows = slice(begin, begin + part)
            s = dot(
                scaled_ref[rows, heads.columns(head)],
                k_ref[0, :keys, heads.key_columns(head)],
                (1, 1),
            )
            if crossing:
                q_ids = jnp.tile(q_column_ref[rows], (1, keys // LANES))
                visible = q_ids == k_ids_ref[0, :, :keys]
                if diagonal:
                    q_position = begin + jax.lax.broadcasted_iota(jnp.int32, s.shape, 0)
                    visible &= q_position >= jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
                s = jnp.where(visible, s, MASK_VALUE)
            return s

        parts = list(itertools.product(range(heads.heads_per_step), range(0, size, part)))
        for (head, begin), s in software_pipeline(scores, parts, sizes.forward_ahead):
            keys, rows = s.shape[1], slice(begin, begin + part)
            old_max = max_ref[head, rows]
            new_max = jnp.maximum(old_max, s.max(-1, keepdims=True))
            p = jnp.exp2(s - jnp.tile(new_max, (1, keys // LANES)))
            # As long as all scores of a query are masked, they equal the running maximum, and their
            # weights are 1 and not 0. The first visible score raises the maximum, so that
            # ``rescale`` is 0 and removes these weights from the sums. This always happens, because
            # the last tile of a query block is on the diagonal, where a query attends to itself.
            rescale = jnp.exp2(old_max - new_max)
            max_ref[head, rows] = new_max
            # The sum is per lane. The sum across lanes is slow, so it is done once, after the last
            # tile.
            sums = sum(p[:, lane : lane + LANES] for lane in range(0, keys, LANES))
            sum_ref[head, rows] = sum_ref[head, rows] * rescale + sums
            weighted = dot(p.astype(v_ref.dtype), v_ref[0, :keys, heads.key_columns(head)], (1, 0))
            block = rows, heads.columns(head)
            total_ref[block] = total_ref[block] * _lanes(rescale, heads.head_dim) + weighted

    dispatch_by_mask(flags, tile)

    @pl.when(flags & LAST != 0)
    def end() -> None:
        for head in range(heads.heads_per_step):
            columns, total = heads.columns(head), sum_ref[head].sum(-1, keepdims=True)
            out = total_ref[:, columns] / total
            out_ref[0, :, columns] = out.astype(out_ref.dtype)
            # All lanes of a query hold the same value, so each row of the transpose is the vector
            # of the queries' values. One row is stored.
            log_sum_ref[0, 0, head : head + 1] = (max_ref[head] + jnp.log2(total)).T[:1]


def _lanes(x: jax.Array, count: int) -> jax.Array:
    """Return ``x``, whose 128 columns are equal, as an array with ``count`` columns."""
    return x[:, :count] if count <= LANES else jnp.tile(x, (1, count // LANES))
