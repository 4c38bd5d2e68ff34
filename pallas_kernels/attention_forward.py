"""The forward kernel of attention: softmax over tiles with a running maximum and sum.

The online softmax is that of Milakov and Gimelshein 2018 (arXiv 1805.02867, algorithm 3). The grid
is (steps of heads, needed tiles). The tiles of a block of queries are adjacent in the table, so its
maximum, sum and output stay in VMEM from the first tile to the last and are written once.
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


# The jit makes JAX trace the kernel once. A kernel's body records the source lines that led to its
# trace, and the compiler merges two equal kernels only if these agree; a step with remat runs this
# kernel in the forward pass and again in the backward pass.
@functools.partial(jax.jit, static_argnames="config", inline=True)
def attend_forward(
    query: Float[Array, "batch queries heads_x_dim"],
    key: Float[Array, "batch length kv_heads_x_dim"],
    value: Float[Array, "batch length kv_heads_x_dim"],
    rows: Rows,
    config: KernelConfig,
) -> Residuals:
    """Return the residuals of the backward pass, the output among them.

    For query i and the keys j that it sees, with S_ij = q_i k_j / sqrt(head_dim): out_i is
    sum_j exp(S_ij) v_j / sum_j exp(S_ij), and log_sum_i = log2(sum_j exp(S_ij)), float32.
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
            # In order: the scaled queries; their segment ids as a column; each query's running
            # maximum; its running sum, one partial sum per lane; the weighted sum of the values.
            # The statistics are float32: in bfloat16 a sum over thousands of keys stops growing.
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
        # Steps of heads are independent; the tiles of a step accumulate into the scratch buffers.
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
        # The exponents are base 2. The scale and log2(e) go into the query once per block, which
        # saves a multiplication of every score.
        scale = LOG2_E * heads.head_dim**-0.5
        scaled_ref[...] = (q_ref[0].astype(jnp.float32) * scale).astype(scaled_ref.dtype)
        q_column_ref[...] = column(q_ids_ref[0])
        max_ref[...] = jnp.full_like(max_ref, MASK_VALUE)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        total_ref[...] = jnp.zeros_like(total_ref)

    def tile(crossing: bool, diagonal: bool) -> None:
        def scores(head: int, begin: int) -> jax.Array:
            # On the diagonal the keys after a part's last query are invisible to all of it.
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
            # A row that has seen only masked scores has weights of 1 here. Its first visible score
            # makes ``rescale`` 0, which erases them; every query sees at least itself.
            rescale = jnp.exp2(old_max - new_max)
            max_ref[head, rows] = new_max
            # Summed lane by lane: the slow sum across lanes happens once, after the last tile.
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
            # Every lane holds the same value: one row of the transpose is the vector of queries.
            log_sum_ref[0, 0, head : head + 1] = (max_ref[head] + jnp.log2(total)).T[:1]


def _lanes(x: jax.Array, count: int) -> jax.Array:
    """Return (n, count) from ``x`` (n, 128), whose columns are all equal."""
    return x[:, :count] if count <= LANES else jnp.tile(x, (1, count // LANES))
