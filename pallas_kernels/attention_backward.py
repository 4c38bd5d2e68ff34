"""The backward kernel of attention: one walk over the tiles, five products in each.

With S the scores, P = exp(S - log-sum), dP = dO V^T, dS = P (dP - delta), delta the row sums of
O dO: dV = P^T dO, dQ = dS K, dK = dS^T Q (arXiv 2307.08691, section 3.1.2). All are held turned,
keys by queries, so that what belongs to a query is a row of lanes.
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
LogSums = Float[Array, "batch steps together queries"]
Gradients = tuple[Queries, Keys, Keys]


def attend_backward(saved: Residuals, out_gradient: Queries, walk: KernelConfig) -> Gradients:
    """Gradients of query, key and value.

    The gradients of ``sizes.backward_keys`` keys lie in VMEM until a row is done. A longer row is
    walked once for each so many keys, the query's gradient added up in float32.
    """
    query, key, value = saved[:3]
    width = walk.heads.keys_together * walk.heads.head_dim
    most = walk.sizes.backward_keys * LANES // max(width, LANES) // walk.sizes.tile
    span = min(max(most, 1), walk.blocks)
    if span == walk.blocks:
        return _walked(saved, out_gradient, walk, 0, span, None)

    def add(number: jax.Array, gradients: Gradients) -> Gradients:
        return _walked(saved, out_gradient, walk, number * span, span, gradients)

    # Its sums with the output's gradient in the output's place: the output need not live on.
    saved = saved._replace(out=_row_sums(saved.out, out_gradient, walk))
    empty = jnp.zeros(query.shape, jnp.float32), jnp.zeros_like(key), jnp.zeros_like(value)
    d_query, d_key, d_value = jax.lax.fori_loop(0, pl.cdiv(walk.blocks, span), add, empty)
    return d_query.astype(query.dtype), d_key, d_value


def _row_sums(out: Queries, out_gradient: Queries, walk: KernelConfig) -> LogSums:
    """Delta of every query, of every head."""
    batch, length, _ = out.shape
    heads = walk.heads
    products = out.astype(jnp.float32) * out_gradient.astype(jnp.float32)
    products = products.reshape(batch, length, heads.steps, heads.together, heads.head_dim)
    return products.sum(-1).transpose(0, 2, 3, 1)


def _walked(  # noqa: PLR0913 - what is walked, how, and how far
    saved: Residuals,
    out_gradient: Queries,
    walk: KernelConfig,
    first_key: Int[Array, ""] | int,
    span: int,
    before: Gradients | None,
) -> Gradients:
    """One walk, over ``span`` blocks of keys; what it adds to ``before``, if there is any.

    Then ``saved.out`` is delta.
    """
    query, key, value, rows, out, log_sum = saved
    heads, specs, tile = walk.heads, walk.specs, walk.sizes.tile
    table = needed_tiles(rows.segment_ids, tile, first_key, span, rows.places)
    together, width = heads.together, heads.together * heads.head_dim
    key_width = heads.keys_together * heads.head_dim
    # For whoever counts operations: each walk sees its share of the keys.
    walks = "" if before is None else f"_{pl.cdiv(walk.blocks, span)}_walks"
    first = jnp.full(1, first_key, jnp.int32)

    def span_of(step: Any, t: Any, entries: Any, start: Any) -> tuple:
        return unpack(entries[t], walk.blocks).row, jax.lax.div(start[0], span), step

    spans = pl.BlockSpec((1, span * tile, key_width), span_of)
    in_specs = [
        specs.query(),
        specs.key(),
        specs.key(),
        specs.query() if before is None else specs.log_sums(),
        specs.query(),
        specs.log_sums(),
        specs.query_ids(),
        specs.key_ids(),
    ]
    operands = [table.entries, first, query, key, value, out, out_gradient, log_sum]
    operands += [rows.query_ids(tile), rows.key_ids()]
    aliases = {}
    if before is not None:
        in_specs += [specs.query(), spans, spans]
        aliases = {len(operands) + n: n for n in range(3)}
        operands += before
    call = pl.pallas_call(
        functools.partial(_kernel, walk=walk, adds=before is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(heads.steps, table.count),
            in_specs=in_specs,
            out_specs=[specs.query(), spans, spans],
            scratch_shapes=[
                pltpu.VMEM((tile, width), query.dtype),
                pltpu.VMEM((tile, LANES), jnp.int32),
                pltpu.VMEM((together, tile), jnp.float32),
                pltpu.VMEM((key_width, tile), key.dtype),
                pltpu.VMEM((width, tile), jnp.float32),
                pltpu.VMEM((span * tile, key_width), jnp.float32),
                pltpu.VMEM((span * tile, key_width), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype if before is None else jnp.float32),
            jax.ShapeDtypeStruct(key.shape, key.dtype),
            jax.ShapeDtypeStruct(value.shape, value.dtype),
        ],
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=walk.interpret,
        name=f"flash_attention_backward{walks}",
    )
    if before is None or rows.places is None:
        return call(*operands)
    # Keys after the last of these queries, or of other documents, are nobody's here: no empty grid.
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
    walk: KernelConfig,
    adds: bool,
) -> None:
    heads, sizes, blocks = walk.heads, walk.sizes, walk.blocks
    before_ref, refs = (refs[0], refs[3:]) if adds else (None, refs)
    d_q_ref, d_k_ref, d_v_ref, scaled_ref, k_column, delta_ref, turned_k, d_q, d_k, d_v = refs
    t, last_t = pl.program_id(1), pl.num_programs(1) - 1
    here = unpack(table[t], blocks)
    size, part = sizes.tile, sizes.backward_queries

    def in_row(place: jax.Array) -> jax.Array:
        return unpack(table[place], blocks).row == here.row

    @pl.when((t == 0) | ~in_row(jnp.maximum(t - 1, 0)))
    def start_row() -> None:
        d_k[...] = jnp.zeros_like(d_k)
        d_v[...] = jnp.zeros_like(d_v)

    @pl.when(here.flags & FIRST != 0)
    def start_queries() -> None:
        scale = LOG2_E * heads.head_dim**-0.5
        scaled_ref[...] = (q_ref[0].astype(jnp.float32) * scale).astype(scaled_ref.dtype)
        d_q[...] = jnp.zeros_like(d_q)
        if adds:
            delta_ref[...] = out_ref[0, 0]
        else:
            _put_row_sums(delta_ref, out_ref, d_out_ref, heads)

    def tile(crossing: bool, diagonal: bool) -> None:
        if crossing:
            k_column[...] = column(k_ids_ref[0])
        turned_k[...] = k_ref[0].T
        keys_at = pl.multiple_of((here.key - first_key[0]) * size, size)

        def scores(head: int, begin: int) -> tuple[jax.Array, jax.Array]:
            keys = begin + part if diagonal else size
            rows, at, key_at = slice(begin, begin + part), heads.at(head), heads.key_at(head)
            s = dot(k_ref[0, :keys, key_at], scaled_ref[rows, at], (1, 1))
            d_p = dot(v_ref[0, :keys, key_at], d_out_ref[0, rows, at], (1, 1))
            if crossing:
                k_ids = jnp.tile(k_column[:keys], (1, part // LANES))
                visible = k_ids == q_ids_ref[0, :, rows]
                if diagonal:
                    q_place = begin + jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
                    visible &= q_place >= jax.lax.broadcasted_iota(jnp.int32, s.shape, 0)
                s = jnp.where(visible, s, MASK_VALUE)
            return s, d_p

        parts = list(itertools.product(range(heads.together), range(0, size, part)))
        for (head, begin), (s, d_p) in software_pipeline(scores, parts, sizes.backward_ahead):
            rows, at, key_at = slice(begin, begin + part), heads.at(head), heads.key_at(head)
            p = jnp.exp2(s - log_sum_ref[0, 0, head : head + 1, rows])
            d_s = (p * (d_p - delta_ref[head : head + 1, rows])).astype(k_ref.dtype)
            of_keys = pl.ds(keys_at, s.shape[0]), key_at
            d_v[of_keys] += dot(p.astype(d_out_ref.dtype), d_out_ref[0, rows, at], (1, 0))
            d_k[of_keys] += dot(d_s, scaled_ref[rows, at], (1, 0))
            d_q[at, rows] += dot(turned_k[key_at, : s.shape[0]], d_s, (1, 0))

    dispatch_by_mask(here.flags, tile)

    @pl.when(here.flags & LAST != 0)
    def end_queries() -> None:
        found = (d_q[...] * heads.head_dim**-0.5).T
        d_q_ref[0] = (found + before_ref[0] if adds else found).astype(d_q_ref.dtype)

    @pl.when((t == last_t) | ~in_row(jnp.minimum(t + 1, last_t)))
    def end_row() -> None:
        # The scores' gradients met the scaled query: what is too much is log2(e).
        d_k_ref[0] = (d_k[...] * (1 / LOG2_E)).astype(d_k_ref.dtype)
        d_v_ref[0] = d_v[...].astype(d_v_ref.dtype)


def _put_row_sums(delta_ref: Any, out_ref: Any, d_out_ref: Any, heads: Heads) -> None:
    """Delta of a block of queries, a row of lanes for each head."""
    for head in range(heads.together):
        out, d_out = (x[0, :, heads.at(head)].astype(jnp.float32) for x in (out_ref, d_out_ref))
        delta = (out * d_out).sum(-1, keepdims=True)
        delta_ref[head : head + 1] = jnp.broadcast_to(delta, (delta.shape[0], LANES)).T[:1]
