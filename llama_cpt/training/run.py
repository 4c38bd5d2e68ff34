"""Construction of a run from a config: data, model and step, for every command that trains."""

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, replace
from functools import partial
import sys
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.batch import Batch
from llama_cpt.data.loader import RowSource, batches
from llama_cpt.data.mixture import Mixture, build_mixture
from llama_cpt.data.packed_rows import PackedRows
from llama_cpt.data.prepare.corpora import PreparedCorpora, open_rows, prepare
from llama_cpt.data.rows import HeldoutDocuments
from llama_cpt.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.model.llama import Llama
from llama_cpt.model.lora import Adapters, cast_model
from llama_cpt.parallel.global_arrays import RowPlacement
from llama_cpt.runtime.distributed import is_primary, primary_first
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import validate_run_folder
from llama_cpt.runtime.output_folder import check_shared, check_writable
from llama_cpt.training.optimizer import check_schedule
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
from llama_cpt.training.train_step import TrainState, init_state, state_from_model
from llama_cpt.weights.source import open_source


@dataclass(frozen=True)
class Run:
    """The parts of a run, ready for ``trainer.fit``."""

    config: TrainConfig
    program: TrainProgram
    tokenizer: Tokenizer
    mixture: Mixture
    rows: tuple[RowSource, ...]
    heldout: dict[str, HeldoutDocuments]
    fingerprints: dict[str, Any]
    """The fingerprints of tokenizer and corpora, which must not change when the run resumes."""

    def start(self) -> TrainState:
        """Return the state before the first step: weights of ``init_from``, or random ones."""
        program, key = self.program, jax.random.key(self.config.seed)
        optimizer, mesh = program.optimizer, program.mesh
        if lora := self.config.lora:
            frozen = program.state_shapes.frozen
            state = init_state(lambda: Adapters(lora, frozen, key), optimizer, mesh)
            return replace(state, frozen=self.frozen())
        model = program.state_shapes.trained
        if self.config.init_from:
            return state_from_model(
                open_source(self.config.init_from).load(model, mesh), optimizer, mesh
            )
        return init_state(lambda: _llama_like(model, key), optimizer, mesh)

    def frozen(self) -> Llama:
        """Return the frozen weights of ``init_from``, in the compute type, for adapters."""
        model = open_source(self.config.init_from).load(
            self.program.base_model_shapes, self.program.mesh
        )
        return cast_model(model, self.config.compute.dtype)

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Yield the global batches from step ``first_step`` on, without end.

        Every process reads only the rows of its own devices. Rows are a function of their number,
        so a resumed run reads the rows that an uninterrupted one would.
        """
        config = self.config
        placement = RowPlacement(batch_sharding(self.program.mesh), config.microbatch_rows)
        source = batches(
            self.mixture,
            self.rows,
            bos_id=self.tokenizer.bos_id,
            global_batch_size=config.global_batch_size,
            num_microbatches=config.num_microbatches,
            start_row=first_step * config.global_batch_size,
            rows_here=placement.local_rows,
        )
        with contextlib.closing(source):
            for batch in source:
                yield placement.to_global(batch)


def build_run(config: TrainConfig, mesh: Mesh, program: TrainProgram | None = None) -> Run:
    """Prepare missing data, run all checks that precede a step, and return the run.

    Nothing is compiled yet. ``program`` is that of a config with the same ``compile_key``, whose
    step may be compiled already. Raises UserError for mistakes in the config and its inputs.
    """
    validate_run_folder(config.output)
    check_writable(config.output)
    check_shared("output", config.output)
    # Prepared rows in a bucket may be read-only.
    if "://" not in config.data.prepared:
        check_writable(config.data.prepared)
    check_schedule(config.optimizer, config.num_steps)
    program = program or make_program(config, mesh, jax.default_backend())
    if config.init_from:
        open_source(config.init_from).check(config.model)
    elif needs_reference(config):
        raise UserError(
            f"objective.loss={config.objective.loss} needs init_from, its reference; set it."
        )
    tokenizer = load_tokenizer(config.data.tokenizer)
    tokenizer.require_size(config.model.vocab_size)
    prepared = primary_first(
        partial(prepare, config.data, objective=config.objective),
        "token rows prepared",
    )
    for message in prepared.lossy() if is_primary() else ():
        print(f"warning: {message}", file=sys.stderr)
    corpora = config.data.additional + config.data.original
    mixture = build_mixture(
        config.data,
        {corpus.name: prepared.rows[corpus.name].rows for corpus in corpora},
        seed=config.seed,
        global_batch_size=config.global_batch_size,
    )
    mixture.check_epochs(config.num_steps * config.global_batch_size, config.data.max_epochs)
    fingerprints, references = prepared.fingerprints(), {}
    if needs_reference(config):
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


def _references(
    config: TrainConfig,
    program: TrainProgram,
    prepared: PreparedCorpora,
    tokenizer: Tokenizer,
    identity: str,
) -> dict[str, np.ndarray]:
    """Return the reference log-probabilities per corpus by the initial model, of ``identity``."""

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


def _llama_like(model: Llama, key: jax.Array) -> Llama:
    """Return a model with random weights and the settings of the abstract ``model``."""
    return Llama(
        model.config,
        key,
        compute_dtype=model.compute_dtype,
        remat=model.remat,
        attention=model.attention,
        matmul_precision=model.matmul_precision,
    )
