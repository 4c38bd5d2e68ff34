"""JAX's splash attention behind the signature of ours: another choice, and what ours is held to."""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCKS = (512, 256, 128)
"""The first that divides a row is the row's block."""


def splash_attention(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length kv_heads head_dim"],
    value: Float[Array, "batch length kv_heads head_dim"],
    segment_ids: Int[Array, "batch length"],
    *,
    block: int | None = None,
    fused_backward: bool = True,
    interpret: bool = False,
) -> Float[Array, "batch length heads head_dim"]:
    """``reference.attention``, one kernel call a row, in tiles of ``block`` x ``block`` scores.

    The fused backward pass writes a partial gradient of the query for every block of keys; the
    other computes the scores twice. ``length`` is a multiple of ``block``, of 128 where it is None.
    """
    length, heads, head_dim = query.shape[1:]
    # The kernel fills whole lanes of 128: a smaller head is padded with zeros, which add nothing.
    padding = [(0, 0)] * 3 + [(0, -head_dim % 128)]
    query, key, value = (
        jnp.pad(x, padding).swapaxes(1, 2) for x in (query * head_dim**-0.5, key, value)
    )
    causal = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.CausalMask((length, length))] * heads
    )
    kernel = splash_attention_kernel.make_splash_mha(
        causal,
        block_sizes=_sizes(block or next(n for n in BLOCKS if length % n == 0), fused_backward),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    ids = splash_attention_kernel.SegmentIds(segment_ids, segment_ids)
    out = jax.vmap(kernel)(query, key, value, ids)
    return out.swapaxes(1, 2)[..., :head_dim]


def _sizes(block: int, fused_backward: bool) -> splash_attention_kernel.BlockSizes:
    names = ["block_q", "block_kv", "block_kv_compute"]
    names += ["block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"]
    if not fused_backward:
        names += ["block_q_dq", "block_kv_dq"]
    return splash_attention_kernel.BlockSizes(
        **dict.fromkeys(names, block), use_fused_bwd_kernel=fused_backward
    )
