"""The backward kernel of attention, which computes all three gradients in one pass over the tiles.

Let Q, K, V be the operands, O the output, S the scores, and L the logarithm of the sum of exp(S)
over the keys of each query. The symbol dX denotes the gradient of the loss with respect to X, and *
is elementwise. The kernel recomputes P = exp(S - L). Let dP = dO V^T, and let delta be the row sums
of O * dO. The kernel computes dS = P * (dP - delta) and the gradients dV = P^T dO, dQ = dS K and
dK = dS^T Q (Dao 2023, arXiv 2307.08691, section 3.1.2). These are five matrix products per tile.

The kernel stores S, P, dP and dS transposed, as (keys, queries). A statistic per query, such as L
or delta, is then a row of lanes, and the hardware broadcasts a row along the keys without cost.

The order of the tiles is the same as in the forward kernel: all tiles of one query block precede
the tiles of the next query block. The gradient of the queries therefore needs VMEM for only one
query block. The gradients of the keys and values accumulate in VMEM until the end of the row.
"""

import functools
import itertools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention_parts import (
    LANES,
    LOG2_E,
    MASK_VALUE,
    VMEM_BYTES,
    Heads,
    KernelConfig,
    Residuals,
    column,
    dispatch_by_mask,
    dot,
    software_pipeline,
)
from pallas_kernels.tiles import FIRST, LAST, needed_tiles, unpack

Queries = Float[Array, "batch queries heads_x_dim"]
Keys = Float[Array, "batch length kv_heads_x_dim"]
LogSums = Float[Array, "batch steps heads_per_step queries"]
Gradients = tuple[Queries, Keys, Keys]


def attend_backward(saved: Residuals, out_gradient: Queries, config: KernelConfig) -> Gradients:
    """Return the gradients of query, key and value, in the dtypes of the operands.

    The kernel accumulates the gradients of up to ``sizes.backward_keys`` keys in VMEM. For a longer
    row, the keys are divided into spans and the kernel runs once per span. The gradient of the
    query is then summed over the runs in float32.
    """
    query, key, value = saved[:3]
    width = config.heads.keys_per_step * config.heads.head_dim
    # VMEM buffers are padded to 128 lanes, so a smaller width needs as much VMEM as 128.
    max_blocks = config.sizes.backward_keys * LANES // max(width, LANES) // config.sizes.tile
    span = min(max(max_blocks, 1), config.blocks)
    if span == config.blocks:
        return _backward_pass(saved, out_gradient, config, 0, span, None)

    def add(number: jax.Array, gradients: Gradients) -> Gradients:
        return _backward_pass(saved, out_gradient, config, number * span, span, gradients)

    # Delta is computed once, before the runs, and replaces the output in the residuals. The output
    # then does not have to stay in memory.
    saved = saved._replace(out=_delta(saved.out, out_gradient, config))
    empty = jnp.zeros(query.shape, jnp.float32), jnp.zeros_like(key), jnp.zeros_like(value)
    d_query, d_key, d_value = jax.lax.fori_loop(0, pl.cdiv(config.blocks, span), add, empty)
    return d_query.astype(query.dtype), d_key, d_value


def _delta(out: Queries, out_gradient: Queries, config: KernelConfig) -> LogSums:
    """Return delta, the sum over head_dim of O * dO, for each query and head in float32."""
    batch, length, _ = out.shape
    heads = config.heads
    products = out.astype(jnp.float32) * out_gradient.astype(jnp.float32)
    products = products.reshape(batch, length, heads.steps, heads.heads_per_step, heads.head_dim)
    return products.sum(-1).transpose(0, 2, 3, 1)


def _backward_pass(  # noqa: PLR0913 - operands, configuration and the span of keys
    saved: Residuals,
    out_gradient: Queries,
    config: KernelConfig,
    first_key: Int[Array, ""] | int,
    span: int,
    accumulated: Gradients | None,
) -> Gradients:
    """Run the kernel for the ``span`` key blocks that begin with block ``first_key``.

    If ``accumulated`` is None, the span covers the whole row, and the kernel computes delta from
    the output. Otherwise ``saved.out`` is delta, and the function returns ``accumulated`` plus the
    gradients of this span.
    """
    query, key, value, rows = saved[:4]
    heads, specs, tile = config.heads, config.specs, config.sizes.tile
    table = needed_tiles(rows.segment_ids, tile, first_key, span, rows.query_blocks)
    key_width = heads.keys_per_step * heads.head_dim
    # The kernel's name contains the number of runs, because the planner counts the operations of a
    # kernel by its name, and each run computes only its share of the scores.
    passes = "" if accumulated is None else f"_{pl.cdiv(config.blocks, span)}_walks"
    first = jnp.full(1, first_key, jnp.int32)

    def span_index(step: Any, t: Any, entries: Any, start: Any) -> tuple:
        return unpack(entries[t], config.blocks).row, jax.lax.div(start[0], span), step

    spans = pl.BlockSpec((1, span * tile, key_width), span_index)
    in_specs, inputs = _inputs(saved, out_gradient, config, delta=accumulated is not None)
    operands = [table.entries, first, *inputs]
    aliases = {}
    # The accumulated gradients alias the outputs. The kernel reads the query's gradient and adds to
    # it. The gradients of keys and values are aliased so that the spans that this run does not
    # write keep their values.
    if accumulated is not None:
        in_specs += [specs.query(), spans, spans]
        aliases = {len(operands) + n: n for n in range(3)}
        operands += accumulated
    call = pl.pallas_call(
        functools.partial(_kernel, config=config, adds=accumulated is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(heads.steps, table.count),
            in_specs=in_specs,
            out_specs=[specs.query(), spans, spans],
            scratch_shapes=_scratch_shapes(config, span, query.dtype, key.dtype),
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype if accumulated is None else jnp.float32),
            jax.ShapeDtypeStruct(key.shape, key.dtype),
            jax.ShapeDtypeStruct(value.shape, value.dtype),
        ],
        input_output_aliases=aliases,
        # Steps of heads are independent. The tiles of a step of heads accumulate into the scratch
        # buffers, so they run in order.
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=config.interpret,
        name=f"flash_attention_backward{passes}",
    )
    if accumulated is None or rows.query_blocks is None:
        return call(*operands)
    # With chunks of queries, a span can have no needed tile: all of its keys come after the queries
    # or belong to different documents. The grid would then be empty, so the kernel is skipped and
    # the accumulated gradients, the last three operands, are returned.
    return jax.lax.cond(table.count > 0, call, lambda *operands: operands[-3:], *operands)


def _inputs(
    saved: Residuals, out_gradient: Queries, config: KernelConfig, *, delta: bool
) -> tuple[list[pl.BlockSpec], list[jax.Array]]:
    """Return the block specs and the arrays of the inputs that all kernel calls have in common.

    ``delta`` is True if ``saved.out`` contains delta instead of the output.
    """
    specs, rows = config.specs, saved.rows
    in_specs = [
        specs.query(),
        specs.key(),
        specs.key(),
        specs.log_sums() if delta else specs.query(),
        specs.query(),
        specs.log_sums(),
        specs.query_ids(),
        specs.key_ids(),
    ]
    inputs = [saved.query, saved.key, saved.value, saved.out, out_gradient, saved.log_sum]
    return in_specs, [*inputs, rows.query_ids(config.sizes.tile), rows.key_ids()]


def _scratch_shapes(config: KernelConfig, span: int, query_dtype: Any, key_dtype: Any) -> list[Any]:
    """Return the VMEM buffers of the kernel, in the order of its arguments."""
    heads, tile = config.heads, config.sizes.tile
    per_step, width = heads.heads_per_step, heads.heads_per_step * heads.head_dim
    key_width = heads.keys_per_step * heads.head_dim
    # In this order: the scaled queries; the segment ids of the keys as a column; delta; the
    # transposed keys; the transposed gradient of a query block; the gradients of the span's keys;
    # the gradients of the span's values. The gradients are float32, because they are sums over a
    # whole row.
    return [
        pltpu.VMEM((tile, width), query_dtype),
        pltpu.VMEM((tile, LANES), jnp.int32),
        pltpu.VMEM((per_step, tile), jnp.float32),
        pltpu.VMEM((key_width, tile), key_dtype),
        pltpu.VMEM((width, tile), jnp.float32),
        pltpu.VMEM((span * tile, key_width), jnp.float32),
        pltpu.VMEM((span * tile, key_width), jnp.float32),
    ]


def _kernel(  # noqa: C901, PLR0913 - a ref for each operand, a step for each flag
    table: Any,
    first_key: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    d_out_ref: Any,
    log_sum_ref: Any,
    q_ids_ref: Any,
    k_ids_ref: Any,
    *refs: Any,
    config: KernelConfig,
    adds: bool,
) -> None:
    heads, sizes, blocks = config.heads, config.sizes, config.blocks
    previous_ref, refs = (refs[0], refs[3:]) if adds else (None, refs)
    d_q_ref, d_k_ref, d_v_ref, scaled_ref, k_column, delta_ref, transposed_k, d_q, d_k, d_v = refs
    t, last_t = pl.program_id(1), pl.num_programs(1) - 1
    current = unpack(table[t], blocks)
    size, part = sizes.tile, sizes.backward_queries

    def in_row(entry: jax.Array) -> jax.Array:
        return unpack(table[entry], blocks).row == current.row

    # Tiles are sorted by row and then by query block. The gradients of keys and values are
    # initialized at the first tile of a row and written at the last tile of the row.
    @pl.when((t == 0) | ~in_row(jnp.maximum(t - 1, 0)))
    def start_row() -> None:
        d_k[...] = jnp.zeros_like(d_k)
        d_v[...] = jnp.zeros_like(d_v)

    @pl.when(current.flags & FIRST != 0)
    def start_queries() -> None:
        # As in the forward kernel, the query is multiplied by the scale and log2(e) once per block.
        scale = LOG2_E * heads.head_dim**-0.5
        scaled_ref[...] = (q_ref[0].astype(jnp.float32) * scale).astype(scaled_ref.dtype)
        d_q[...] = jnp.zeros_like(d_q)
        if adds:
            delta_ref[...] = out_ref[0, 0]
        else:
            _store_delta(delta_ref, out_ref, d_out_ref, heads)

    def tile(crossing: bool, diagonal: bool) -> None:
        if crossing:
            k_column[...] = column(k_ids_ref[0])
        # dQ^T = K^T dS^T. Transposing the keys once per tile avoids a transpose of every dS.
        transposed_k[...] = k_ref[0].T
        keys_at = pl.multiple_of((current.key - first_key[0]) * size, size)

        def scores(head: int, begin: int) -> tuple[jax.Array, jax.Array]:
            # On the diagonal, keys after the last query of a part are invisible to the whole part,
            # so they are left out of the products.
            keys = begin + part if diagonal else size
            rows, columns, key_columns = _slices(heads, head, begin, part)
            s = dot(k_ref[0, :keys, key_columns], scaled_ref[rows, columns], (1, 1))
            d_p = dot(v_ref[0, :keys, key_columns], d_out_ref[0, rows, columns], (1, 1))
            if crossing:
                k_ids = jnp.tile(k_column[:keys], (1, part // LANES))
                visible = k_ids == q_ids_ref[0, :, rows]
                if diagonal:
                    q_position = begin + jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
                    visible &= q_position >= jax.lax.broadcasted_iota(jnp.int32, s.shape, 0)
                s = jnp.where(visible, s, MASK_VALUE)
            return s, d_p

        parts = list(itertools.product(range(heads.heads_per_step), range(0, size, part)))
        for (head, begin), (s, d_p) in software_pipeline(scores, parts, sizes.backward_ahead):
            rows, columns, key_columns = _slices(heads, head, begin, part)
            # A masked score is so small that its probability is exactly 0.
            p = jnp.exp2(s - log_sum_ref[0, 0, head : head + 1, rows])
            d_s = (p * (d_p - delta_ref[head : head + 1, rows])).astype(k_ref.dtype)
            key_block = pl.ds(keys_at, s.shape[0]), key_columns
            # The query heads of a group add to the gradients of the key head that they share.
            d_v[key_block] += dot(p.astype(d_out_ref.dtype), d_out_ref[0, rows, columns], (1, 0))
            d_k[key_block] += dot(d_s, scaled_ref[rows, columns], (1, 0))
            d_q[columns, rows] += dot(transposed_k[key_columns, : s.shape[0]], d_s, (1, 0))

    dispatch_by_mask(current.flags, tile)

    @pl.when(current.flags & LAST != 0)
    def end_queries() -> None:
        # S = Q K^T / sqrt(head_dim), so dQ = dS K / sqrt(head_dim).
        gradient = (d_q[...] * heads.head_dim**-0.5).T
        d_q_ref[0] = (gradient if previous_ref is None else gradient + previous_ref[0]).astype(
            d_q_ref.dtype
        )

    @pl.when((t == last_t) | ~in_row(jnp.minimum(t + 1, last_t)))
    def end_row() -> None:
        # dK = dS^T Q / sqrt(head_dim), but dS^T was multiplied by the scaled query, whose factor is
        # log2(e) / sqrt(head_dim). The factor 1 / log2(e) corrects that.
        d_k_ref[0] = (d_k[...] * (1 / LOG2_E)).astype(d_k_ref.dtype)
        d_v_ref[0] = d_v[...].astype(d_v_ref.dtype)


def _store_delta(delta_ref: Any, out_ref: Any, d_out_ref: Any, heads: Heads) -> None:
    """Compute delta for a query block and store it as one row of lanes per head."""
    for head in range(heads.heads_per_step):
        out, d_out = (
            x[0, :, heads.columns(head)].astype(jnp.float32) for x in (out_ref, d_out_ref)
        )
        delta = (out * d_out).sum(-1, keepdims=True)
        delta_ref[head : head + 1] = jnp.broadcast_to(delta, (delta.shape[0], LANES)).T[:1]


def _slices(heads: Heads, head: int, begin: int, queries: int) -> tuple[slice, slice, slice]:
    """Return the slices of rows, query columns and key columns for one part of a tile.

    The part consists of ``queries`` queries of query head ``head``, beginning with query ``begin``.
    The key columns belong to the key head of this query head.
    """
    return slice(begin, begin + queries), heads.columns(head), heads.key_columns(head)
