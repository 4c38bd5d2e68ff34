"""The jitted programs of a run and their XLA options, for the commands ``train`` and ``plan``."""

from collections.abc import Hashable
from dataclasses import dataclass
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import optax

from llama_cpt.config.fields import compiled_values
from llama_cpt.config.schema import ComputeConfig, PreferenceConfig, TrainConfig
from llama_cpt.data.batch import TokenBatch
from llama_cpt.model.attention import resolve_attention
from llama_cpt.model.linear import require_qwix
from llama_cpt.model.llama import Llama, abstract_llama, with_precision
from llama_cpt.model.lora import Adapters, abstract_adapters, cast_abstract
from llama_cpt.objectives.cross_entropy import token_nll
from llama_cpt.objectives.next_token import make_objective
from llama_cpt.objectives.preference_losses import REFERENCE_FREE
from llama_cpt.parallel.mesh import BATCH_AXES, constrain, partition_spec, with_shardings
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.optimizer import make_optimizer
from llama_cpt.training.train_step import (
    TrainState,
    abstract_state,
    jit_train_step,
    make_train_step,
)

TPU_OPTIONS = {
    # Start each transfer as early as the schedule allows, and wait for the result as late as the
    # schedule allows.
    "xla_tpu_enable_latency_hiding_scheduler": True,
    # Fuse an all-gather of weights with the matrix product that runs at the same time.
    "xla_tpu_enable_async_collective_fusion": True,
    # Fuse the all-gather with several products if one product is too short to hide it.
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    # Keep the matrix unit busy during the fused all-gather.
    "xla_tpu_overlap_compute_collective_tc": True,
    # Compute a product with a gathered or scattered operand as a ring: the device multiplies one
    # part while the next part is in transit.
    "xla_tpu_enable_windowed_einsum_for_all_gather": True,
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": True,
    # Sum gradients over slices while the rest of the step is computed.
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    # Do the same for gradients of different sizes.
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}
"""XLA options with which both ``train`` and ``plan`` compile the training step for TPUs.

Every option makes the compiler overlap communication with matrix products. The values are the
defaults of current libtpu versions. They are set explicitly so that a plan stays valid for the run
even if a later libtpu or ``LIBTPU_INIT_ARGS`` on a host changes a default.
``xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter`` is not set because it did not change
the compiled step.
"""


CPU_OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""XLA options with which ``train`` compiles the training step for CPUs.

The default order of instructions lets more instructions run at the same time and needs more memory.
The instructions themselves, and therefore the results, are the same.
"""


def compiler_options(backend: str) -> dict[str, Any] | None:
    """Return the compiler options for ``jax.jit`` on ``backend``, or None for the defaults."""
    return {"tpu": TPU_OPTIONS, "cpu": CPU_OPTIONS}.get(backend)


@dataclass(frozen=True)
class TrainProgram:
    """The jitted programs of a run for one mesh, and the shapes of the training state."""

    mesh: Mesh
    state_shapes: TrainState
    """The training state as ShapeDtypeStructs with shardings."""
    optimizer: optax.GradientTransformation
    step: jax.stages.Wrapped
    """Jitted ``step`` of ``make_train_step``. It donates ``state``. ``limits`` is an argument if
    ``spikes.action`` is ``skip``."""
    score: jax.stages.Wrapped
    """Jitted ``score(model, batch)``, which returns the NLL in nats of each target, float32 (batch,
    length)."""

    @property
    def base_model_shapes(self) -> Llama:
        """The float32 model without adapters, as ShapeDtypeStructs, for loading ``init_from``."""
        if not isinstance(self.state_shapes.trained, Adapters):
            return self.state_shapes.trained
        return with_shardings(cast_abstract(self.state_shapes.frozen, jnp.float32), self.mesh)


def make_program(config: TrainConfig, mesh: Mesh, backend: str) -> TrainProgram:
    """Return the jitted programs of ``config`` on ``mesh``, without compiling them.

    ``backend`` is the platform, such as ``tpu``, for which ``compute.attention=auto`` is resolved.
    Raises UserError if a size in the config is not divisible by the mesh axes that shard it, or if
    the attention implementation or the matrix precision is not available.
    """
    check_mesh(config, mesh)
    compute = config.compute
    require_qwix(compute.matmul_precision)
    model = _abstract_model(config, mesh, backend)
    optimizer = make_optimizer(config.optimizer)
    objective = make_objective(
        config.objective,
        num_corpora=len(config.data.additional + config.data.original),
        loss_chunk_tokens=compute.loss_chunk_tokens,
        seed=config.seed,
    )
    if config.lora:
        # Frozen weights are stored in the compute type, because each matrix product would otherwise
        # convert them to that type.
        frozen = cast_abstract(model, compute.dtype)
        adapters = abstract_adapters(config.lora, frozen)
        abstract = abstract_state(adapters, optimizer, mesh, frozen)
    else:
        abstract = abstract_state(model, optimizer, mesh)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    train_step = make_train_step(objective, optimizer)
    step = jit_train_step(train_step, state_shardings, compiler_options(backend))

    @jax.jit
    def score(model: Llama, batch: TokenBatch) -> jax.Array:
        # Held-out text is scored without quantized products, because the trained weights are later
        # used without quantized products.
        model = with_precision(model, "bf16")
        hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids)
        # The result is replicated, because every process sums the whole array.
        return constrain(token_nll(hidden, model.head, batch.targets, compute.loss_chunk_tokens))

    return TrainProgram(mesh, abstract, optimizer, step, score)


def _abstract_model(config: TrainConfig, mesh: Mesh, backend: str) -> Llama:
    """Return the float32 model of ``config`` for ``backend`` as ShapeDtypeStructs."""
    compute = config.compute
    attention = resolve_attention(
        compute.attention,
        backend,
        config.data.sequence_length,
        config.architecture.head_dim,
        compute.dtype,
        mesh.shape["context"],
    )
    return abstract_llama(
        config.architecture,
        compute_dtype=compute.dtype,
        remat=compute.remat,
        attention=attention,
        matmul_precision=compute.matmul_precision,
    )


def compile_key(config: TrainConfig) -> Hashable:
    """Return the values of ``config`` on which the compiled step depends.

    Runs with equal keys can share a ``TrainProgram``. Each field declares whether it is part of the
    key (``config.fields.FieldTraits``). For example, the key does not contain the ALMR, the
    learning rate or the number of steps. It contains the seed only if the step draws random
    numbers.
    """
    return compiled_values(config)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch whose fields have shape (micro-batches, rows, ...)."""
    return NamedSharding(mesh, partition_spec("microbatch", "batch", None))


def check_mesh(config: TrainConfig, mesh: Mesh) -> None:
    """Raise UserError if a size in ``config`` is not divisible by the mesh axes that shard it.

    The model's sizes are checked first, because they can require a different mesh, and the valid
    batch sizes depend on the mesh.
    """
    slices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    field = "microbatch_size" if config.microbatch_size else "global_batch_size"
    model, context = config.architecture, mesh.shape["context"]
    for name, size, axis, parts in (
        ("embed_dim", model.embed_dim, "fsdp x context", mesh.shape["fsdp"] * context),
        ("num_heads", model.num_heads, "tensor", mesh.shape["tensor"]),
        ("num_kv_heads", model.num_kv_heads, "tensor", mesh.shape["tensor"]),
        ("mlp_dim", model.mlp_dim, "tensor", mesh.shape["tensor"]),
        ("vocab_size", model.vocab_size, "tensor", mesh.shape["tensor"]),
    ):
        if size % parts:
            raise UserError(
                f"model.{name}={size} is not a multiple of the mesh's {axis} ({parts}); set "
                "a different mesh or use a different number of chips."
            )
    for name, size, axis, parts in (
        (field, config.microbatch_rows, "replica x fsdp", slices),
        ("evaluation.batch_size", config.evaluation.batch_size, "replica x fsdp", slices),
        # Context parallelism gives each device two chunks of a row, so that every device computes
        # an equal share of the causal mask.
        (
            "data.sequence_length",
            config.data.sequence_length,
            "2 x context",
            2 * context if context > 1 else 1,
        ),
    ):
        if size % parts:
            nearest = max(round(size / parts), 1) * parts
            raise UserError(
                f"{name}={size} must be a multiple of the mesh's {axis} ({parts}); "
                f"nearest: {nearest}."
            )


def needs_reference(config: TrainConfig) -> bool:
    """Return whether the objective uses log-probabilities of answers under the initial model."""
    objective = config.objective
    return isinstance(objective, PreferenceConfig) and objective.loss not in REFERENCE_FREE


def describe_precision(compute: ComputeConfig) -> str:
    """Return the compute type, followed by the operand type of matrix products if it differs.

    Examples are ``bfloat16`` and ``bfloat16 int8``.
    """
    unquantized = compute.matmul_precision == "bf16"
    return compute.dtype if unquantized else f"{compute.dtype} {compute.matmul_precision}"
