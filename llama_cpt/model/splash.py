"""JAX's splash attention with the signature of our kernel: an alternative and a baseline."""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCKS = (512, 256, 128)
"""Block sizes in order of preference; a row takes the first that divides its length."""


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
    """Compute ``reference.attention`` in tiles of ``block`` x ``block`` scores, one row per call.

    The fused backward pass writes a partial gradient of the query for every block of keys; the
    other one computes the scores twice. ``length`` is a multiple of ``block``, or of 128 if
    ``block`` is None.
    """
    length, heads, head_dim = query.shape[1:]
    # The kernel works on whole registers of 128 lanes. Smaller heads are padded with zeros, which
    # contribute nothing to scores and output.
    padding = [(0, 0)] * 3 + [(0, -head_dim % 128)]
    query, key, value = (
        jnp.pad(x, padding).swapaxes(1, 2) for x in (query * head_dim**-0.5, key, value)
    )
    causal = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.CausalMask((length, length))] * heads
    )
    kernel = splash_attention_kernel.make_splash_mha(
        causal,
        block_sizes=_block_sizes(
            block or next(n for n in BLOCKS if length % n == 0), fused_backward
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    ids = splash_attention_kernel.SegmentIds(segment_ids, segment_ids)
    out = jax.vmap(kernel)(query, key, value, ids)
    return out.swapaxes(1, 2)[..., :head_dim]


def _block_sizes(block: int, fused_backward: bool) -> splash_attention_kernel.BlockSizes:
    names = ["block_q", "block_kv", "block_kv_compute"]
    names += ["block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"]
    if not fused_backward:
        names += ["block_q_dq", "block_kv_dq"]
    return splash_attention_kernel.BlockSizes(
        **dict.fromkeys(names, block), use_fused_bwd_kernel=fused_backward
    )
