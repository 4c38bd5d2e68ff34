"""From a config to the parts of a run: data, model, step. Used by every command that trains."""

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass, replace
from functools import partial
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np
import optax

from llama_cpt.batch import Batch, TokenBatch
from llama_cpt.config import (
    ComputeConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    PreferenceConfig,
    TrainConfig,
)
from llama_cpt.data.corpora import Prepared, open_rows, prepare
from llama_cpt.data.loader import RowSource, batches
from llama_cpt.data.mixture import Mixture, mixture_of
from llama_cpt.data.packed_rows import PackedRows
from llama_cpt.data.token_rows import HeldoutDocuments
from llama_cpt.data.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.errors import UserError
from llama_cpt.folders import require_writable
from llama_cpt.global_arrays import from_rows_here, rows_here
from llama_cpt.model.attention import resolve_attention
from llama_cpt.model.llama import Llama, abstract_llama
from llama_cpt.model.load import check_source, load_parameters
from llama_cpt.model.lora import Adapters, abstract_adapters, abstract_in, in_dtype
from llama_cpt.model.quantized import require_qwix
from llama_cpt.processes import first_in_turn
from llama_cpt.sharding import BATCH_AXES, constrain, spec, with_shardings
from llama_cpt.training.compiler_options import compiler_options
from llama_cpt.training.cross_entropy import token_nll
from llama_cpt.training.objectives import make_objective
from llama_cpt.training.optimizer import check_schedule, make_optimizer
from llama_cpt.training.preference_objectives import REFERENCE_FREE
from llama_cpt.training.reference import (
    Identity,
    Score,
    make_scorer,
    model_identity,
    reference_logprobs,
)
from llama_cpt.training.train_step import (
    TrainState,
    abstract_state,
    init_state,
    jit_train_step,
    make_train_step,
    state_around,
)

PREPARE_SECONDS = 86_400
"""How long the other processes wait for the first to prepare token rows."""


@dataclass(frozen=True)
class Program:
    """What is compiled: the same on a pod, on a laptop and ahead of time."""

    mesh: Mesh
    abstract: TrainState
    """Shapes and shardings of the state."""
    optimizer: optax.GradientTransformation
    step: Callable
    """``step(state, batch, learning_rate) -> (state, metrics)``, jitted, the state donated."""
    score: Callable
    """``score(model, batch) -> nll`` (batch, length), jitted."""

    @property
    def plain(self) -> Llama:
        """The abstract model that ``init_from`` is read into: float32, without adapters."""
        if not isinstance(self.abstract.trained, Adapters):
            return self.abstract.trained
        return with_shardings(abstract_in(self.abstract.frozen, jnp.float32), self.mesh)


@dataclass(frozen=True)
class Run:
    """A run's parts, ready for ``trainer.fit``."""

    config: TrainConfig
    program: Program
    tokenizer: Tokenizer
    mixture: Mixture
    rows: tuple[RowSource, ...]
    heldout: dict[str, HeldoutDocuments]
    fingerprints: dict[str, Any]
    """Of the tokenizer and of every corpus: what a resumed run must find unchanged."""

    def start(self) -> TrainState:
        """The state before the first step: weights from ``init_from``, or drawn."""
        program, key = self.program, jax.random.key(self.config.seed)
        optimizer, mesh = program.optimizer, program.mesh
        if lora := self.config.lora:
            frozen = program.abstract.frozen
            state = init_state(lambda: Adapters(lora, frozen, key), optimizer, mesh)
            return replace(state, frozen=self.frozen())
        model = program.abstract.trained
        if self.config.init_from:
            return state_around(
                load_parameters(self.config.init_from, model, mesh), optimizer, mesh
            )
        return init_state(lambda: _llama_like(model, key), optimizer, mesh)

    def frozen(self) -> Llama:
        """The weights of ``init_from``, beside which adapters are trained."""
        model = load_parameters(self.config.init_from, self.program.plain, self.program.mesh)
        return in_dtype(model, self.config.compute.dtype)

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Batches on the devices, from step ``first_step`` on, without end.

        Every process reads the rows of its own devices alone.
        """
        config, sharding = self.config, batch_sharding(self.program.mesh)
        rows = config.global_batch_size // config.num_microbatches
        source = batches(
            self.mixture,
            self.rows,
            bos_id=self.tokenizer.bos_id,
            global_batch_size=config.global_batch_size,
            num_microbatches=config.num_microbatches,
            start_row=first_step * config.global_batch_size,
            rows_here=rows_here(sharding, rows),
        )
        with contextlib.closing(source):
            for batch in source:
                yield from_rows_here(batch, rows, sharding)


def build(config: TrainConfig, mesh: Mesh, program: Program | None = None) -> Run:
    """Prepare what is missing, check all that can be checked before a step, compile nothing yet.

    ``program`` is one of a config with the same ``compiled_part``, whose step is compiled already.
    Raises UserError for whatever a user can mend.
    """
    for place in (config.output, config.data.prepared):
        require_writable(place)
    check_schedule(config.optimizer, config.num_steps)
    program = program or make_program(config, mesh, jax.default_backend())
    if config.init_from:
        check_source(config.init_from, config.model)
    elif has_reference(config):
        raise UserError(f"objective.loss={config.objective.loss} needs init_from: its reference.")
    tokenizer = load_tokenizer(config.data.tokenizer)
    tokenizer.require_size(config.model.vocab_size)
    prepared = first_in_turn(
        partial(prepare, config.data, objective=config.objective),
        "token rows prepared",
        seconds=PREPARE_SECONDS,
    )
    for told in prepared.lossy():
        print(f"warning: {told}", file=sys.stderr)
    corpora = config.data.additional + config.data.original
    mixture = mixture_of(
        config.data,
        {corpus.name: prepared.rows[corpus.name].rows for corpus in corpora},
        seed=config.seed,
        global_batch_size=config.global_batch_size,
    )
    mixture.check_epochs(config.num_steps * config.global_batch_size, config.data.max_epochs)
    fingerprints, references = prepared.fingerprints(), {}
    if has_reference(config):
        model = model_identity(config.init_from, config.model, config.seed)
        fingerprints["data"] |= {"reference model": model}
        references = _references(config, program, prepared, tokenizer, model)
    return Run(
        config,
        program,
        tokenizer,
        mixture,
        open_rows(prepared, references),
        {c.name: HeldoutDocuments(prepared.heldout_folder(c.name)) for c in config.data.heldout},
        fingerprints,
    )


def has_reference(config: TrainConfig) -> bool:
    """Whether answers are scored with the model that the run starts from before its first step."""
    objective = config.objective
    return isinstance(objective, PreferenceConfig) and objective.loss not in REFERENCE_FREE


def _references(
    config: TrainConfig, program: Program, prepared: Prepared, tokenizer: Tokenizer, identity: str
) -> dict[str, np.ndarray]:
    """By corpus, what the model that the run starts from, of ``identity``, makes of its answers."""

    def make_score() -> Score:
        weights = load_parameters(config.init_from, program.plain, program.mesh)
        chunk = config.compute.loss_chunk_tokens
        return make_scorer(weights, program.mesh, loss_chunk_tokens=chunk)

    return reference_logprobs(
        {
            name: (PackedRows(prepared.folder(name)), manifest.fingerprint)
            for name, manifest in prepared.rows.items()
        },
        make_score,
        folder=f"{config.data.prepared}/reference",
        identity=Identity(identity, tokenizer.fingerprint, computed_in(config.compute)),
        batch_size=config.global_batch_size // config.num_microbatches,
    )


def computed_in(compute: ComputeConfig) -> str:
    """The types of what is computed, in words."""
    plain = compute.matmul_precision == "bf16"
    return compute.dtype if plain else f"{compute.dtype} {compute.matmul_precision}"


def make_program(config: TrainConfig, mesh: Mesh, backend: str) -> Program:
    """The jitted step and score of ``config`` on ``mesh``; ``backend`` settles ``auto``."""
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
        # In the compute type: each product would round the weights to it all the same.
        frozen = abstract_in(model, compute.dtype)
        adapters = abstract_adapters(config.lora, frozen)
        abstract = abstract_state(adapters, optimizer, mesh, frozen)
    else:
        abstract = abstract_state(model, optimizer, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    train_step = make_train_step(objective, optimizer)
    step = jit_train_step(train_step, placed, compiler_options(backend))

    @jax.jit
    def score(model: Llama, batch: TokenBatch) -> jax.Array:
        # As whoever loads the trained weights computes with them.
        model.matmul_precision = "bf16"
        hidden = model.hidden(batch.tokens, batch.positions, batch.segment_ids)
        # Replicated: every process adds up the whole of it.
        return constrain(token_nll(hidden, model.head, batch.targets, compute.loss_chunk_tokens))

    return Program(mesh, abstract, optimizer, step, score)


def compiled_part(config: TrainConfig) -> TrainConfig:
    """The config with all that is no part of the compiled step set to the same.

    Runs that agree in it share one compilation: ratio, rates, schedule, length, corpora of the same
    number and, where nothing is drawn in the step, the seed.
    """
    data, drawn = config.data, getattr(config.objective, "neftune_alpha", 0.0) > 0
    corpora = data.additional + data.original
    same = tuple(CorpusConfig(str(place), "any") for place in range(len(corpora)))
    optimizer = replace(
        config.optimizer,
        peak_learning_rate=0.0,
        schedule="constant",
        warmup_steps=0,
        initial_learning_rate=0.0,
        final_learning_rate_fraction=0.0,
        decay_steps=0,
    )
    return TrainConfig(
        output="any",
        model=config.model,
        data=DataConfig("any", "any", data.sequence_length, 0.0, original=same, chat=data.chat),
        optimizer=optimizer,
        num_steps=1,
        global_batch_size=config.global_batch_size,
        microbatch_size=config.microbatch_size,
        init_from="any" if config.lora else "",
        seed=config.seed if drawn else 0,
        objective=config.objective,
        lora=config.lora,
        compute=config.compute,
        mesh=config.mesh,
        evaluation=EvaluationConfig(batch_size=config.evaluation.batch_size),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of every field of a step's batch."""
    return NamedSharding(mesh, spec("microbatch", "batch", None))


def check_mesh(config: TrainConfig, mesh: Mesh) -> None:
    """Refuse sizes that the mesh does not divide, naming the field."""
    slices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    microbatch = config.global_batch_size // config.num_microbatches
    field = "microbatch_size" if config.microbatch_size else "global_batch_size"
    model, context = config.model, mesh.shape["context"]
    for name, size, axis, parts in (
        (field, microbatch, "replica x fsdp", slices),
        ("evaluation.batch_size", config.evaluation.batch_size, "replica x fsdp", slices),
        # Two chunks of a row for each device that shares it.
        (
            "data.sequence_length",
            config.data.sequence_length,
            "2 x context",
            2 * context if context > 1 else 1,
        ),
        ("model.embed_dim", model.embed_dim, "fsdp x context", mesh.shape["fsdp"] * context),
        ("model.num_heads", model.num_heads, "tensor", mesh.shape["tensor"]),
        ("model.num_kv_heads", model.num_kv_heads, "tensor", mesh.shape["tensor"]),
        ("model.mlp_dim", model.mlp_dim, "tensor", mesh.shape["tensor"]),
        ("model.vocab_size", model.vocab_size, "tensor", mesh.shape["tensor"]),
    ):
        if size % parts:
            nearest = max(round(size / parts), 1) * parts
            raise UserError(
                f"{name}={size} must be a multiple of the mesh's {axis} ({parts}); "
                f"nearest: {nearest}."
            )


def _llama_like(model: Llama, key: jax.Array) -> Llama:
    """Random weights in the tree of the abstract ``model``."""
    return Llama(
        model.config,
        key,
        compute_dtype=model.compute_dtype,
        remat=model.remat,
        attention=model.attention,
        matmul_precision=model.matmul_precision,
    )
