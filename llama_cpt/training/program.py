"""The compiled programs of a run, made by one function for ``train`` and for ``plan``."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import optax

from llama_cpt.config.fields import compiled_values
from llama_cpt.config.schema import ComputeConfig, PreferenceConfig, TrainConfig
from llama_cpt.data.batch import TokenBatch
from llama_cpt.model.attention import resolve_attention
from llama_cpt.model.llama import Llama, abstract_llama, with_precision
from llama_cpt.model.lora import Adapters, abstract_adapters, cast_abstract
from llama_cpt.model.quantized import require_qwix
from llama_cpt.objectives.cross_entropy import token_nll
from llama_cpt.objectives.next_token import make_objective
from llama_cpt.objectives.preference_losses import REFERENCE_FREE
from llama_cpt.parallel.mesh import BATCH_AXES, constrain, partition_spec, with_shardings
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.compiler_options import compiler_options
from llama_cpt.training.optimizer import make_optimizer
from llama_cpt.training.train_step import (
    TrainState,
    abstract_state,
    jit_train_step,
    make_train_step,
)


@dataclass(frozen=True)
class TrainProgram:
    """The compiled programs: the same on a pod, on a laptop and ahead of time."""

    mesh: Mesh
    state_shapes: TrainState
    """The abstract state: shapes and shardings."""
    optimizer: optax.GradientTransformation
    step: Callable
    """``step(state, batch, learning_rate) -> (state, metrics)``, jitted, the state donated."""
    score: Callable
    """``score(model, batch) -> nll`` (batch, length), jitted."""

    @property
    def base_model_shapes(self) -> Llama:
        """The abstract model that ``init_from`` is read into: float32, without adapters."""
        if not isinstance(self.state_shapes.trained, Adapters):
            return self.state_shapes.trained
        return with_shardings(cast_abstract(self.state_shapes.frozen, jnp.float32), self.mesh)


def make_program(config: TrainConfig, mesh: Mesh, backend: str) -> TrainProgram:
    """Return the jitted step and score of ``config`` on ``mesh``.

    ``backend`` resolves ``compute.attention=auto``. Raises UserError if the mesh does not divide
    the config's sizes.
    """
    check_mesh(config, mesh)
    compute = config.compute
    require_qwix(compute.matmul_precision)
    attention = resolve_attention(
        compute.attention,
        backend,
        config.data.sequence_length,
        config.model.head_dim,
        compute.dtype,
        mesh.shape["context"],
    )
    model = abstract_llama(
        config.model,
        compute_dtype=compute.dtype,
        remat=compute.remat,
        attention=attention,
        matmul_precision=compute.matmul_precision,
    )
    optimizer = make_optimizer(config.optimizer)
    objective = make_objective(
        config.objective,
        num_corpora=len(config.data.additional + config.data.original),
        loss_chunk_tokens=compute.loss_chunk_tokens,
        seed=config.seed,
    )
    if config.lora:
        # Frozen weights are stored in the compute type: each product would round them to it anyway.
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
        # Held-out text is scored as users of the trained weights compute with them.
        model = with_precision(model, "bf16")
        hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids)
        # Replicated: every process adds up the whole of it.
        return constrain(token_nll(hidden, model.head, batch.targets, compute.loss_chunk_tokens))

    return TrainProgram(mesh, abstract, optimizer, step, score)


def compile_key(config: TrainConfig) -> Hashable:
    """Return what the compiled step depends on; runs with equal keys share one compilation.

    Each field of the config declares whether it is part of the key (``config.fields.FieldTraits``).
    ALMR, learning rate, schedule, number of steps and names of corpora are not, nor is the seed
    unless the step draws random numbers.
    """
    return compiled_values(config)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of every field of a step's batch (micro-batches, rows, ...)."""
    return NamedSharding(mesh, partition_spec("microbatch", "batch", None))


def check_mesh(config: TrainConfig, mesh: Mesh) -> None:
    """Raise UserError, naming the field, for a size that the mesh does not divide.

    The model's sizes are checked first: they require another mesh, and the batch follows the mesh.
    """
    slices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    field = "microbatch_size" if config.microbatch_size else "global_batch_size"
    model, context = config.model, mesh.shape["context"]
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
                "another mesh or use another number of chips."
            )
    for name, size, axis, parts in (
        (field, config.microbatch_rows, "replica x fsdp", slices),
        ("evaluation.batch_size", config.evaluation.batch_size, "replica x fsdp", slices),
        # Context parallelism cuts a row into two chunks per device, to balance the causal mask.
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
    """Return whether the objective needs log-probabilities of the initial model."""
    objective = config.objective
    return isinstance(objective, PreferenceConfig) and objective.loss not in REFERENCE_FREE


def describe_precision(compute: ComputeConfig) -> str:
    """Return the compute type, with the precision of matrix products if it is lower."""
    unquantized = compute.matmul_precision == "bf16"
    return compute.dtype if unquantized else f"{compute.dtype} {compute.matmul_precision}"
