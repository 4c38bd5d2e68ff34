"""Picks the attention named by the config and wraps it for the mesh."""

from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float, Int

from llama_cpt.model.splash import BLOCKS, splash_attention
from llama_cpt.parallel import context_parallel
from llama_cpt.parallel.mesh import partition_spec
from llama_cpt.runtime.errors import UserError
from pallas_kernels import reference
from pallas_kernels.attention_parts import LANES
from pallas_kernels.flash_attention import flash_attention, refusal

# A dense mask grows with the length squared; beyond this it dwarfs the activations.
LONGEST_CUDNN_ROW = 8192


def resolve_attention(
    name: str, backend: str, sequence_length: int, head_dim: int, dtype: str, context: int = 1
) -> str:
    """``name``, or what ``auto`` means on ``backend`` (``cpu``, ``gpu``, ``tpu``).

    ``context`` devices share a row. Raises UserError where ``name`` cannot attend there, in rows of
    that length, with that ``head_dim`` or in ``dtype``.
    """
    if name == "auto":
        name = _automatic(backend, sequence_length, dtype, context)
    if name in ("splash", "cudnn") and context > 1:
        raise UserError(
            f"compute.attention={name} takes whole rows: set mesh.context=1 (it is {context}), or "
            "name pallas (on TPUs) or reference."
        )
    if name in ("pallas", "splash") and backend != "tpu":
        raise UserError(f"compute.attention={name} runs on TPUs; here it is {backend}: set auto.")
    if name == "pallas" and (refused := refusal(sequence_length, head_dim)):
        raise UserError(
            f"compute.attention=pallas: {refused}. Change data.sequence_length (the length) or "
            "model.head_dim, or name reference."
        )
    if name == "pallas" and context > 1 and sequence_length % (2 * LANES * context):
        raise UserError(
            f"compute.attention=pallas with mesh.context={context} takes rows of a multiple of "
            f"{2 * LANES * context}: data.sequence_length is {sequence_length}."
        )
    if name == "splash" and sequence_length % BLOCKS[-1]:
        raise UserError(
            f"compute.attention=splash takes rows of a multiple of {BLOCKS[-1]}: "
            f"data.sequence_length is {sequence_length}."
        )
    if name == "cudnn" and backend != "gpu":
        raise UserError(f"compute.attention=cudnn runs on GPUs; here it is {backend}: set auto.")
    if name == "cudnn" and dtype == "float32":
        raise UserError("compute.attention=cudnn takes no float32: set compute.dtype=bfloat16.")
    return name


def _automatic(backend: str, sequence_length: int, dtype: str, context: int) -> str:
    if backend == "tpu":
        return "pallas"
    if backend == "gpu" and context > 1:
        raise UserError(
            f"compute.attention=auto has no choice on a GPU with mesh.context={context}: name "
            "reference."
        )
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
    """``pallas_kernels.reference.attention`` by the named implementation, on the current mesh.

    Where it cuts rows, all lie in zig-zag order (``model/zigzag.py``) but ``segment_ids``.
    """
    if context_parallel.context_size() > 1:
        kernel = {"reference": reference.attention, "pallas": flash_attention}[implementation]
        return _per_device(partial(_gathered, kernel))(query, key, value, segment_ids)
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
    heads = partition_spec("batch", "length", "act_heads", None)
    return jax.shard_map(
        kernel,
        in_specs=(heads, heads, heads, partition_spec("batch", None)),
        out_specs=heads,
        check_vma=False,
    )


def _gathered(
    kernel: Callable, query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """This device's queries with the keys of the whole row."""
    key, value = context_parallel.gather_rows(key), context_parallel.gather_rows(value)
    return kernel(query, key, value, segment_ids, chunks=context_parallel.local_chunks())


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=True, implementation="cudnn"
    )
