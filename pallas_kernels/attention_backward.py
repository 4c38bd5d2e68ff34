"""The backward kernel of attention: one pass over the tiles, five matrix products per tile.

With S the scores, P = exp(S - log-sum), dP = dO V^T, dS = P (dP - delta), delta the row sums of
O dO: dV = P^T dO, dQ = dS K, dK = dS^T Q (arXiv 2307.08691, section 3.1.2). S, P, dP and dS are
transposed, (keys, queries), so that a statistic per query (log-sum, delta) is a row of lanes, which
broadcasts along the keys for free.

The tiles are visited in the order of the forward kernel, query block after query block, so that one
kernel makes all three gradients. The gradient of the queries needs one block of VMEM at a time, and
those of the keys and values accumulate in VMEM over a whole row.
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
    """Return the gradients of query, key and value, in the types of the operands.

    The gradients of up to ``sizes.backward_keys`` keys lie in VMEM until a row is done. A longer
    row takes one pass per span of so many keys, and the query's gradient accumulates over the
    passes in float32.
    """
    query, key, value = saved[:3]
    width = config.heads.keys_per_step * config.heads.head_dim
    # Buffers are padded to whole lanes, so narrow heads count as 128 wide.
    max_blocks = config.sizes.backward_keys * LANES // max(width, LANES) // config.sizes.tile
    span = min(max(max_blocks, 1), config.blocks)
    if span == config.blocks:
        return _backward_pass(saved, out_gradient, config, 0, span, None)

    def add(number: jax.Array, gradients: Gradients) -> Gradients:
        return _backward_pass(saved, out_gradient, config, number * span, span, gradients)

    # Delta takes the place of the output, which then need not stay in memory during the passes.
    saved = saved._replace(out=_delta(saved.out, out_gradient, config))
    empty = jnp.zeros(query.shape, jnp.float32), jnp.zeros_like(key), jnp.zeros_like(value)
    d_query, d_key, d_value = jax.lax.fori_loop(0, pl.cdiv(config.blocks, span), add, empty)
    return d_query.astype(query.dtype), d_key, d_value


def _delta(out: Queries, out_gradient: Queries, config: KernelConfig) -> LogSums:
    """Return the row sums of O dO for each query and head, float32."""
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
    """Run the kernel over ``span`` blocks of keys from block ``first_key`` on.

    With ``accumulated``, the gradients are added to those and ``saved.out`` is delta; without, one
    pass covers the row and the kernel computes delta from the output.
    """
    query, key, value, rows, out, log_sum = saved
    heads, specs, tile = config.heads, config.specs, config.sizes.tile
    table = needed_tiles(rows.segment_ids, tile, first_key, span, rows.query_blocks)
    per_step, width = heads.heads_per_step, heads.heads_per_step * heads.head_dim
    key_width = heads.keys_per_step * heads.head_dim
    # The name states the number of passes because the planner counts operations by it: each pass
    # sees its share of the keys.
    passes = "" if accumulated is None else f"_{pl.cdiv(config.blocks, span)}_walks"
    first = jnp.full(1, first_key, jnp.int32)

    def span_index(step: Any, t: Any, entries: Any, start: Any) -> tuple:
        return unpack(entries[t], config.blocks).row, jax.lax.div(start[0], span), step

    spans = pl.BlockSpec((1, span * tile, key_width), span_index)
    in_specs = [
        specs.query(),
        specs.key(),
        specs.key(),
        specs.query() if accumulated is None else specs.log_sums(),
        specs.query(),
        specs.log_sums(),
        specs.query_ids(),
        specs.key_ids(),
    ]
    operands = [table.entries, first, query, key, value, out, out_gradient, log_sum]
    operands += [rows.query_ids(tile), rows.key_ids()]
    aliases = {}
    # The accumulated gradients share the buffers of the outputs. The query's is read and added to;
    # those of keys and values are aliased only so that the spans of other passes keep their values.
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
            # In order: the scaled queries; the keys' segment ids as a column; delta; the transposed
            # keys; the gradient of a block of queries, transposed; those of the span's keys and
            # values. Gradients are float32 because they are sums over a whole row.
            scratch_shapes=[
                pltpu.VMEM((tile, width), query.dtype),
                pltpu.VMEM((tile, LANES), jnp.int32),
                pltpu.VMEM((per_step, tile), jnp.float32),
                pltpu.VMEM((key_width, tile), key.dtype),
                pltpu.VMEM((width, tile), jnp.float32),
                pltpu.VMEM((span * tile, key_width), jnp.float32),
                pltpu.VMEM((span * tile, key_width), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype if accumulated is None else jnp.float32),
            jax.ShapeDtypeStruct(key.shape, key.dtype),
            jax.ShapeDtypeStruct(value.shape, value.dtype),
        ],
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=config.interpret,
        name=f"flash_attention_backward{passes}",
    )
    if accumulated is None or rows.query_blocks is None:
        return call(*operands)
    # If all keys of the span come after these queries or belong to other documents, no tile is
    # needed and the grid would be empty.
    return jax.lax.cond(table.count > 0, call, lambda *operands: operands[-3:], *operands)


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

    @pl.when((t == 0) | ~in_row(jnp.maximum(t - 1, 0)))
    def start_row() -> None:
        d_k[...] = jnp.zeros_like(d_k)
        d_v[...] = jnp.zeros_like(d_v)

    @pl.when(current.flags & FIRST != 0)
    def start_queries() -> None:
        # As in the forward kernel, the scale and log2(e) go into the query once per block.
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
        # dQ^T = K^T dS^T: transposing the keys once per tile spares a transpose of each dS.
        transposed_k[...] = k_ref[0].T
        keys_at = pl.multiple_of((current.key - first_key[0]) * size, size)

        def scores(head: int, begin: int) -> tuple[jax.Array, jax.Array]:
            # On the diagonal the keys after a part's last query are invisible to all of it.
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
            p = jnp.exp2(s - log_sum_ref[0, 0, head : head + 1, rows])
            d_s = (p * (d_p - delta_ref[head : head + 1, rows])).astype(k_ref.dtype)
            key_block = pl.ds(keys_at, s.shape[0]), key_columns
            # A group's query heads add to the gradient of the key head that they share.
            d_v[key_block] += dot(p.astype(d_out_ref.dtype), d_out_ref[0, rows, columns], (1, 0))
            d_k[key_block] += dot(d_s, scaled_ref[rows, columns], (1, 0))
            d_q[columns, rows] += dot(transposed_k[key_columns, : s.shape[0]], d_s, (1, 0))

    dispatch_by_mask(current.flags, tile)

    @pl.when(current.flags & LAST != 0)
    def end_queries() -> None:
        gradient = (d_q[...] * heads.head_dim**-0.5).T
        d_q_ref[0] = (gradient + previous_ref[0] if adds else gradient).astype(d_q_ref.dtype)

    @pl.when((t == last_t) | ~in_row(jnp.minimum(t + 1, last_t)))
    def end_row() -> None:
        # dS was multiplied with the scaled query, whose factor is log2(e) / sqrt(head_dim); the
        # gradient has 1 / sqrt(head_dim) only.
        d_k_ref[0] = (d_k[...] * (1 / LOG2_E)).astype(d_k_ref.dtype)
        d_v_ref[0] = d_v[...].astype(d_v_ref.dtype)


def _store_delta(delta_ref: Any, out_ref: Any, d_out_ref: Any, heads: Heads) -> None:
    """Store delta of a block of queries, a row of lanes per head."""
    for head in range(heads.heads_per_step):
        out, d_out = (
            x[0, :, heads.columns(head)].astype(jnp.float32) for x in (out_ref, d_out_ref)
        )
        delta = (out * d_out).sum(-1, keepdims=True)
        delta_ref[head : head + 1] = jnp.broadcast_to(delta, (delta.shape[0], LANES)).T[:1]


def _slices(heads: Heads, head: int, begin: int, queries: int) -> tuple[slice, slice, slice]:
    """Return the rows of a part, and its head's columns in blocks of queries and of keys."""
    return slice(begin, begin + queries), heads.columns(head), heads.key_columns(head)
