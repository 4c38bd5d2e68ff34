"""Selection of an attention implementation, and the partitioning of attention over the mesh."""

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

# Maximum row length for which ``auto`` selects cuDNN, whose dense mask grows with the square of the
# length. At 8,192 tokens the mask takes 128 MiB per row.
MAX_CUDNN_LENGTH = 8192


def resolve_attention(
    name: str, backend: str, sequence_length: int, head_dim: int, dtype: str, context: int = 1
) -> str:
    """Return the attention implementation to use for ``name``, an implementation or ``auto``.

    ``backend`` is ``cpu``, ``gpu`` or ``tpu``, ``dtype`` is the compute dtype, and ``context`` is
    the number of devices over which a row is sharded. Raises UserError if the implementation does
    not support the backend, the sequence length, ``head_dim``, the dtype or ``context``.
    """
    if name == "auto":
        name = _automatic(backend, sequence_length, dtype, context)
    if name in ("splash", "cudnn") and context > 1:
        raise UserError(
            f"compute.attention={name} needs whole rows, but mesh.context={context}: set "
            "mesh.context=1, or compute.attention=pallas (on TPUs) or reference."
        )
    if name in ("pallas", "splash") and backend != "tpu":
        raise UserError(f"compute.attention={name} runs on TPUs, not on {backend}: set auto.")
    if name == "pallas" and (refused := refusal(sequence_length, head_dim)):
        raise UserError(
            f"compute.attention=pallas: {refused}. Change data.sequence_length (the length) or "
            "model.head_dim, or set reference."
        )
    if name == "pallas" and context > 1 and sequence_length % (2 * LANES * context):
        raise UserError(
            f"data.sequence_length={sequence_length} must be a multiple of {2 * LANES * context}: "
            f"compute.attention=pallas requires it with mesh.context={context}."
        )
    if name == "splash" and sequence_length % BLOCKS[-1]:
        raise UserError(
            f"data.sequence_length={sequence_length} must be a multiple of {BLOCKS[-1]} for "
            "compute.attention=splash."
        )
    if name == "cudnn" and backend != "gpu":
        raise UserError(f"compute.attention=cudnn runs on GPUs, not on {backend}: set auto.")
    if name == "cudnn" and dtype == "float32":
        raise UserError(
            "compute.attention=cudnn does not support float32: set compute.dtype=bfloat16."
        )
    return name


def _automatic(backend: str, sequence_length: int, dtype: str, context: int) -> str:
    if backend == "tpu":
        return "pallas"
    if backend == "gpu" and context > 1:
        raise UserError(
            f"compute.attention=auto selects nothing on a GPU with mesh.context={context}: set "
            "reference."
        )
    if backend == "gpu" and dtype == "bfloat16":
        if sequence_length > MAX_CUDNN_LENGTH:
            raise UserError(
                f"compute.attention=auto selects nothing on a GPU for rows of {sequence_length}: "
                f"set cudnn (its mask takes {mask_bytes(sequence_length) >> 20:,} MiB per row), "
                f"reference, or a data.sequence_length up to {MAX_CUDNN_LENGTH}."
            )
        return "cudnn"
    return "reference"


def mask_bytes(sequence_length: int) -> int:
    """Return the bytes per row of cuDNN's dense mask, a bfloat16 bias added to the scores."""
    return 2 * sequence_length**2


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length kv_heads head_dim"],
    value: Float[Array, "batch length kv_heads head_dim"],
    segment_ids: Int[Array, "batch length"],
    *,
    implementation: str,
) -> Float[Array, "batch length heads head_dim"]:
    """Return causal attention within segments, computed by ``implementation`` on the current mesh.

    The result equals that of ``pallas_kernels.reference.attention`` up to rounding, and has the
    shape and dtype of ``query``. If rows are partitioned over the mesh axis ``context``, the result
    and all arguments except ``segment_ids`` are in zigzag order (``parallel/context_parallel.py``).
    Raises ValueError if ``implementation`` is ``auto`` or unknown.
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
        case _:
            raise ValueError(
                f"unknown attention {implementation!r}; resolve the name with resolve_attention."
            )


def _per_device(kernel: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return ``kernel`` mapped over the mesh, so that each device computes its rows and heads.

    Without a current mesh, returns ``kernel`` itself. The mapping is explicit, because XLA cannot
    partition a Pallas kernel.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    # Rows and heads are independent, so no communication is needed. ``check_vma`` is off, because a
    # kernel does not declare how its outputs vary over the mesh.
    heads = partition_spec("batch", "length", "act_heads", None)
    return jax.shard_map(
        kernel,
        in_specs=(heads, heads, heads, partition_spec("batch", None)),
        out_specs=heads,
        check_vma=False,
    )


def _gathered(
    kernel: Callable[..., jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
) -> jax.Array:
    """Return the attention of this device's queries to the keys of whole rows.

    Call this function inside ``shard_map``.
    """
    key, value = context_parallel.gather_rows(key), context_parallel.gather_rows(value)
    return kernel(query, key, value, segment_ids, chunks=context_parallel.local_chunks())


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Return causal attention within segments, computed by cuDNN with a dense mask."""
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, is_causal=True, implementation="cudnn"
    )
