"""Picks the attention named by the config and wraps it for the mesh."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int

from llama_cpt.errors import UserError
from llama_cpt.model.splash import BLOCKS, splash_attention
from llama_cpt.sharding import spec
from pallas_kernels import reference
from pallas_kernels.flash_attention import flash_attention, refusal

# A dense mask grows with the length squared; beyond this it dwarfs the activations.
LONGEST_CUDNN_ROW = 8192


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
    if name == "pallas" and (refused := refusal(sequence_length, head_dim)):
        raise UserError(
            f"compute.attention=pallas: {refused}. Change data.sequence_length (the length) or "
            "model.head_dim, or name reference."
        )
    if name == "splash" and sequence_length % BLOCKS[-1]:
        raise UserError(
            f"compute.attention=splash takes rows of a multiple of {BLOCKS[-1]}: "
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
                f"name cudnn (its mask takes {mask_bytes(sequence_length) >> 20:,} MiB a row), "
                f"reference, or a data.sequence_length up to {LONGEST_CUDNN_ROW}."
            )
        return "cudnn"
    return "reference"


def mask_bytes(sequence_length: int) -> int:
    """Of ``cudnn``'s dense mask, a row: cuDNN takes it as a bfloat16 bias added to the scores."""
    return 2 * sequence_length**2


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
            return _per_device(splash_attention)(query, key, value, segment_ids)
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
