"""JAX's splash attention with the signature of ``flash_attention``, as a baseline."""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCKS = (512, 256, 128)
"""Block sizes in tokens. The default is the first size that divides the length of a row."""


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
    """Return causal attention within segments, computed by JAX's splash attention.

    The result equals that of ``pallas_kernels.reference.attention`` up to rounding. A tile of
    scores has ``block`` queries and ``block`` keys, and ``length`` must be a multiple of ``block``.
    If ``block`` is None, the first size in ``BLOCKS`` that divides ``length`` is used, and
    ``length`` must be a multiple of 128. With ``fused_backward``, one kernel computes all gradients
    and writes a partial gradient of the query for every block of keys. Otherwise, the gradients are
    computed by two kernels, each of which computes all scores.
    """
    length, heads, head_dim = query.shape[1:]
    # The kernel needs a head_dim that is a multiple of the 128 lanes of a register. Smaller heads
    # are padded with zeros, which change neither the scores nor the output.
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
    assert isinstance(out, jax.Array)
    return out.swapaxes(1, 2)[..., :head_dim]


def _block_sizes(block: int, fused_backward: bool) -> splash_attention_kernel.BlockSizes:
    return splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=None if fused_backward else block,
        block_kv_dq=None if fused_backward else block,
        use_fused_bwd_kernel=fused_backward,
    )
