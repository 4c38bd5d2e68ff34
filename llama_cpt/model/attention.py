"""Picks the attention named by the config and wraps it for the mesh."""

from collections.abc import Callable

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from llama_cpt.errors import UserError
from llama_cpt.sharding import spec
from pallas_kernels import reference
from pallas_kernels.attention_parts import LANES
from pallas_kernels.flash_attention import HEAD_DIMS, LONGEST, flash_attention

# A dense mask grows with the length squared; beyond this it dwarfs the activations.
LONGEST_CUDNN_ROW = 8192
# The largest that divides the row.
SPLASH_BLOCKS = (512, 256, 128)


def resolve_attention(
    name: str, backend: str, sequence_length: int, head_dim: int, dtype: str
) -> str:
    """``name``, or what ``auto`` means on ``backend`` (``cpu``, ``gpu``, ``tpu``).

    Raises UserError where ``name`` cannot attend there, in rows of that length, with that
    ``head_dim`` or in ``dtype``.
    """
    if name == "auto":
        name = _automatic(backend, sequence_length, dtype)
    if name in ("pallas", "splash") and backend != "tpu":
        raise UserError(f"compute.attention={name} runs on TPUs; here it is {backend}: set auto.")
    if name == "pallas" and (
        sequence_length % LANES or sequence_length > LONGEST or head_dim not in HEAD_DIMS
    ):
        raise UserError(
            f"compute.attention=pallas takes rows of a multiple of {LANES} up to {LONGEST} and "
            f"model.head_dim of {', '.join(map(str, HEAD_DIMS))}; data.sequence_length is "
            f"{sequence_length}, model.head_dim {head_dim}. Change them, or name reference."
        )
    if name == "splash" and sequence_length % SPLASH_BLOCKS[-1]:
        raise UserError(
            f"compute.attention=splash takes rows of a multiple of {SPLASH_BLOCKS[-1]}: "
            f"data.sequence_length is {sequence_length}."
        )
    if name == "cudnn" and dtype == "float32":
        raise UserError("compute.attention=cudnn takes no float32: set compute.dtype=bfloat16.")
    return name


def _automatic(backend: str, sequence_length: int, dtype: str) -> str:
    if backend == "tpu":
        return "pallas"
    if backend == "gpu" and dtype == "bfloat16":
        if sequence_length > LONGEST_CUDNN_ROW:
            raise UserError(
                f"compute.attention=auto has no choice on a GPU for rows of {sequence_length}: "
                f"name cudnn (its mask takes {sequence_length**2 / 2**20:.0f} MiB a row), "
                f"reference, or a data.sequence_length up to {LONGEST_CUDNN_ROW}."
            )
        return "cudnn"
    return "reference"


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length kv_heads head_dim"],
    value: Float[Array, "batch length kv_heads head_dim"],
    segment_ids: Int[Array, "batch length"],
    *,
    implementation: str,
) -> Float[Array, "batch length heads head_dim"]:
    """``pallas_kernels.reference.attention`` by the named implementation, on the current mesh."""
    match implementation:
        case "reference":
            return reference.attention(query, key, value, segment_ids)
        case "cudnn":
            return _cudnn(query, key, value, segment_ids)
        case "pallas":
            return _per_device(flash_attention)(query, key, value, segment_ids)
        case "splash":
            return _per_device(_splash)(query, key, value, segment_ids)
    raise ValueError(f"attention {implementation!r} is not resolved or not known")


def _per_device(kernel: Callable) -> Callable:
    """Each device runs ``kernel`` on its rows and heads: a kernel is opaque to the partitioner."""
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    heads = spec("batch", "length", "act_heads", None)
    return jax.shard_map(
        kernel,
        in_specs=(heads, heads, heads, spec("batch", "length")),
        out_specs=heads,
        check_vma=False,
    )


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=True, implementation="cudnn"
    )


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """JAX's splash attention, one kernel call a row."""
    length, heads, head_dim = query.shape[1:]
    # The kernel fills whole lanes of 128: a smaller head is padded with zeros, which add nothing.
    padding = [(0, 0)] * 3 + [(0, -head_dim % 128)]
    query, key, value = (
        jnp.pad(x, padding).swapaxes(1, 2) for x in (query * head_dim**-0.5, key, value)
    )
    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    causal = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.CausalMask((length, length))] * heads
    )
    kernel = splash_attention_kernel.make_splash_mha(
        causal, block_sizes=sizes, head_shards=1, q_seq_shards=1
    )
    ids = splash_attention_kernel.SegmentIds(segment_ids, segment_ids)
    out = jax.vmap(kernel)(query, key, value, ids)
    return out.swapaxes(1, 2)[..., :head_dim]
