"""Construction of a run from a config: checks, token rows, mixture and jitted programs."""

from collections.abc import Generator, Mapping
import contextlib
from dataclasses import dataclass, replace
from functools import partial
import logging
import math
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from llama_cpt.config.schema import PreferenceConfig, TrainConfig
from llama_cpt.data.batch import Batch
from llama_cpt.data.chat.template import load_chat_template
from llama_cpt.data.loader import batches
from llama_cpt.data.mixture import Mixture, build_mixture
from llama_cpt.data.packed_rows import PackedRows
from llama_cpt.data.prepare.corpora import PreparedCorpora, open_heldout, open_rows, prepare
from llama_cpt.data.rows import HeldoutDocuments, TokenRows
from llama_cpt.data.tokenizer.base import Tokenizer
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.model.attention import mask_bytes
from llama_cpt.model.llama import Llama
from llama_cpt.model.lora import Adapters, cast_model
from llama_cpt.parallel.global_arrays import RowPlacement
from llama_cpt.parallel.mesh import BATCH_AXES
from llama_cpt.runtime.distributed import is_primary, primary_first
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import validate_run_folder
from llama_cpt.runtime.output_folder import check_shared, check_writable
from llama_cpt.runtime.wandb_run import check_wandb
from llama_cpt.training.evaluation_plan import EvaluationPlan, plan_evaluations
from llama_cpt.training.optimizer import (
    SCHEDULE_VERSION,
    check_schedule,
    saved_schedule_version,
)
from llama_cpt.training.program import (
    TrainProgram,
    batch_sharding,
    describe_precision,
    make_program,
    needs_reference,
)
from llama_cpt.training.reference import (
    ReferenceIdentity,
    Score,
    make_scorer,
    model_identity,
    reference_logprobs,
)
from llama_cpt.training.train_step import TrainState, donatable, init_state, state_from_model
from llama_cpt.training.untrained_tokens import warn_of_untrained_tokens
from llama_cpt.weights.prompt_format import generation_settings
from llama_cpt.weights.source import open_source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that passed all checks and can be trained with ``trainer.fit``."""

    config: TrainConfig
    program: TrainProgram
    tokenizer: Tokenizer
    template: str | None
    """Fingerprint of the chat template; None if all corpora contain documents."""
    mixture: Mixture
    rows: tuple[TokenRows | PackedRows, ...]
    """Token rows of each corpus, in the order of the mixture."""
    heldout: dict[str, HeldoutDocuments]
    """Held-out documents by corpus name."""
    fingerprints: dict[str, Any]
    """Fingerprints of the tokenizer and the corpora. A resumed run compares them with those in the
    checkpoint."""
    evaluations: EvaluationPlan
    """The held-out evaluations and their cost."""
    generation: dict[str, Any]
    """The content of ``generation_config.json`` of the base model; empty without a base model."""
    schedule_version: int = SCHEDULE_VERSION
    """Version of the learning-rate schedule with which the run started."""

    @property
    def heldout_samples(self) -> dict[str, str]:
        """A string per held-out corpus that changes if the evaluated text or its windows change."""
        length = self.config.data.sequence_length
        return {
            name: f"{min(self.evaluations.documents, len(held))} documents of "
            f"{self.fingerprints['heldout'][name]}, windows of {length}"
            for name, held in self.heldout.items()
        }

    def resumed(self, metadata: dict[str, Any]) -> "Run":
        """Return this run with the settings in a checkpoint's ``metadata``.

        These settings are the generation settings of the base model, the version of the
        learning-rate schedule, and the number of held-out documents if ``evaluation.documents`` is
        0. A run that an earlier version of this program started keeps its schedule.
        """
        stored = (metadata.get("prompt_format") or {}).get("generation")
        version, schedule = saved_schedule_version(metadata), self.config.optimizer.schedule
        if is_primary() and version < SCHEDULE_VERSION and schedule in ("cosine", "linear"):
            logger.info(
                "%s: the run keeps its %s learning-rate schedule of version %d, whose decay begins "
                "one step early.",
                self.config.output,
                schedule,
                version,
            )
        documents = metadata.get("heldout_documents")
        if documents is None:
            documents = metadata.get("config", {}).get("evaluation", {}).get("documents", 0)
        return replace(
            self,
            schedule_version=version,
            evaluations=_evaluations(self.config, self.heldout, self.program.mesh, documents),
            generation=self.generation if stored is None else stored,
        )

    def start(self) -> TrainState:
        """Return the state before the first step.

        The weights are loaded from ``init_from``. Without ``init_from`` they are random. If the
        model is untrained on the tokens of the chat template, a warning is logged.
        """
        state, chat = self._initial_state(), self.config.data.chat
        if chat and self.config.data.corpora_of("conversations") and self.config.init_from:
            template = load_chat_template(self.tokenizer, chat.template)
            lora = self.config.lora is not None
            warn_of_untrained_tokens(state.model, template, self.tokenizer, lora=lora)
        return state

    def _initial_state(self) -> TrainState:
        program, key = self.program, jax.random.key(self.config.seed)
        optimizer, mesh = program.optimizer, program.mesh
        if lora := self.config.lora:
            frozen = program.state_shapes.frozen
            state = init_state(lambda: Adapters(lora, frozen, key), optimizer, mesh)
            return replace(state, frozen=donatable(self.frozen(), mesh))
        model = program.state_shapes.trained
        if self.config.init_from:
            source = open_source(self.config.init_from)
            # No variable holds the loaded arrays, so that they are freed one at a time.
            return state_from_model(donatable(source.load(model, mesh), mesh), optimizer, mesh)
        return init_state(lambda: _llama_like(model, key), optimizer, mesh)

    def frozen(self) -> Llama:
        """Return the weights of ``init_from`` in the compute type, as the base model for LoRA."""
        model = open_source(self.config.init_from).load(
            self.program.base_model_shapes, self.program.mesh
        )
        return cast_model(model, self.config.compute.dtype)

    def describe(self) -> str:
        """Return one line with the number of parameters, the devices and the resolved settings."""
        abstract, mesh = self.program.state_shapes, self.program.mesh
        size, trained = _size(abstract.model), _size(abstract.trained)
        parameters = f"{size:,} parameters"
        if self.config.lora:
            parameters = f"trained parameters: {trained:,} ({trained / size:.2%} of {size:,})"
        axes = " x ".join(f"{name} {count}" for name, count in mesh.shape.items())
        kind = jax.devices()[0].device_kind
        attention = abstract.model.attention
        if attention == "cudnn":
            mask = mask_bytes(self.config.data.sequence_length)
            attention += f" (its mask takes {mask >> 20:,} MiB per row)"
        return (
            f"{self.config.output}: {parameters} on {kind} ({axes}), attention {attention}, "
            f"remat {abstract.model.remat}, compute {describe_precision(self.config.compute)}"
        )

    def batches(self, first_row: int) -> Generator[Batch]:
        """Yield the global batches of successive steps, without end.

        The first batch starts with row number ``first_row`` of the run. Every process reads only
        the rows of its own devices. The content of a row depends only on the row's number in the
        run, so a resumed run reads the same rows as an uninterrupted run.
        """
        config = self.config
        placement = RowPlacement(batch_sharding(self.program.mesh), config.microbatch_rows)
        source = batches(
            self.mixture,
            self.rows,
            global_batch_size=config.global_batch_size,
            num_microbatches=config.num_microbatches,
            start_row=first_row,
            rows_here=placement.local_rows,
        )
        with contextlib.closing(source):
            for batch in source:
                yield placement.to_global(batch)


def build_run(
    config: TrainConfig,
    mesh: Mesh,
    program: TrainProgram | None = None,
    *,
    limit_tokens: int | None = None,
) -> Run:
    """Check ``config`` and its inputs, prepare missing token rows, and return the run.

    This function does not compile the training step. If ``program`` is None, it is created.
    Otherwise it must come from a config with the same ``compile_key``. Runs that are compared with
    each other need the same ``limit_tokens``, as in ``plan_evaluations``. Raises UserError if a
    check fails: for example, if a folder cannot be written, or if the config does not match the
    initial weights, the tokenizer or the corpora.
    """
    _check_folders(config)
    if is_primary():
        check_wandb(config.wandb_project)
    check_schedule(config.optimizer, config.num_steps)
    program = program or make_program(config, mesh, jax.default_backend())
    _check_initial_weights(config)
    tokenizer = load_tokenizer(config.data.tokenizer)
    tokenizer.require_size(config.architecture.vocab_size)
    prepared = primary_first(
        partial(prepare, config.data, objective=config.objective),
        "token rows prepared",
    )
    for message in prepared.lossy() if is_primary() else ():
        logger.warning("%s", message)
    corpora = config.data.additional + config.data.original
    mixture = build_mixture(
        config.data,
        {corpus.name: prepared.rows[corpus.name].rows for corpus in corpora},
        seed=config.seed,
        global_batch_size=config.global_batch_size,
    )
    mixture.check_epochs(config.num_steps * config.global_batch_size, config.data.max_epochs)
    fingerprints, references = prepared.fingerprints(), {}
    chat = config.data.chat
    template = None
    if chat and config.data.corpora_of("conversations"):
        template = load_chat_template(tokenizer, chat.template).fingerprint
    if needs_reference(config):
        model = model_identity(config.init_from, config.architecture, config.seed)
        fingerprints["data"] |= {"reference model": model}
        references = _references(config, program, prepared, tokenizer, model)
    heldout = open_heldout(config.data)
    return Run(
        config,
        program,
        tokenizer,
        template,
        mixture,
        open_rows(prepared, references),
        heldout,
        fingerprints,
        _evaluations(config, heldout, program.mesh, limit_tokens=limit_tokens),
        generation_settings(open_source(config.init_from)) if config.init_from else {},
    )


def _evaluations(
    config: TrainConfig,
    heldout: Mapping[str, HeldoutDocuments],
    mesh: Mesh,
    documents: int = 0,
    limit_tokens: int | None = None,
) -> EvaluationPlan:
    return plan_evaluations(
        config,
        heldout,
        limit_tokens=limit_tokens,
        documents=documents,
        row_multiple=math.prod(mesh.shape[axis] for axis in BATCH_AXES),
    )


def _check_folders(config: TrainConfig) -> None:
    """Raise UserError if a folder that the run writes to cannot be used."""
    validate_run_folder(config.output)
    check_writable(config.output)
    check_shared("output", config.output)
    # Prepared rows in a bucket can be read-only.
    if "://" not in config.data.prepared:
        check_writable(config.data.prepared)


def _check_initial_weights(config: TrainConfig) -> None:
    """Raise UserError if ``init_from`` does not fit ``model``, or is required but not set."""
    if config.init_from:
        open_source(config.init_from).check(config.architecture)
    elif isinstance(config.objective, PreferenceConfig) and needs_reference(config):
        raise UserError(
            f"objective.loss={config.objective.loss} needs init_from as its reference; set it."
        )


def _references(
    config: TrainConfig,
    program: TrainProgram,
    prepared: PreparedCorpora,
    tokenizer: Tokenizer,
    identity: str,
) -> dict[str, np.ndarray]:
    """Return the reference log-probabilities of each corpus under the initial model.

    ``identity`` is the ``model_identity`` of the initial model.
    """

    def make_score() -> Score:
        weights = open_source(config.init_from).load(program.base_model_shapes, program.mesh)
        chunk = config.compute.loss_chunk_tokens
        return make_scorer(weights, program.mesh, loss_chunk_tokens=chunk)

    return reference_logprobs(
        {
            name: (PackedRows(prepared.folder(name)), manifest.fingerprint)
            for name, manifest in prepared.rows.items()
        },
        make_score,
        folder=f"{config.data.prepared}/reference",
        identity=ReferenceIdentity(
            identity, tokenizer.fingerprint, describe_precision(config.compute)
        ),
        batch_size=config.microbatch_rows,
    )


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _llama_like(model: Llama, key: jax.Array) -> Llama:
    """Return a model with random weights and the same settings as the abstract ``model``."""
    return Llama(
        model.config,
        key,
        compute_dtype=model.compute_dtype,
        remat=model.remat,
        attention=model.attention,
        matmul_precision=model.matmul_precision,
    )
