"""Lowering of a run's programs for TPUs, which need not exist: ``.compile()`` runs ``libtpu``."""

from dataclasses import replace
import importlib.util
import os
import platform
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from llama_cpt.config.schema import NextTokenConfig, PreferenceConfig, TrainConfig
from llama_cpt.data.batch import Batch, PreferenceBatch, TokenBatch, UnpairedBatch
from llama_cpt.parallel.mesh import topology_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.program import TrainProgram, batch_sharding, make_program
from llama_cpt.training.reference import row_sharding, scorer_program

# Assumed tokens per preference pair; a run reads the number of pairs per row from its data.
ROW_TOKENS_PER_PAIR = 1024


# Variables that libtpu reads when it is loaded. They keep it from querying the metadata server for
# the machine's type, and allow two compilations at a time.
COMPILER_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
CONTAINER = (
    'docker run --platform linux/amd64 -v "$PWD:/llama_cpt" -w /llama_cpt python:3.12 '
    "sh -c \"pip install -e '.[tpu]' && python -m llama_cpt.plan ...\""
)


def lower_step(config: TrainConfig, topology: str, slices: int = 1) -> jax.stages.Lowered:
    """Lower the step that ``train`` would run on ``topology``, such as ``v5p:4x4x8``."""
    return lower_program(config, topology_program(config, topology, slices))


def topology_program(config: TrainConfig, topology: str, slices: int = 1) -> TrainProgram:
    """Return the programs of ``config`` for ``slices`` slices of ``topology``; no TPU needed."""
    require_compiler()
    return make_program(config, topology_mesh(config.mesh, topology, slices), "tpu")


def lower_program(config: TrainConfig, program: TrainProgram) -> jax.stages.Lowered:
    """Lower the step of ``program`` with abstract arguments."""
    with jax.set_mesh(program.mesh):
        rate = jax.ShapeDtypeStruct((), jnp.float32)
        return program.step.lower(program.state_shapes, abstract_batch(config, program.mesh), rate)


def require_compiler() -> None:
    """Raise UserError if ``libtpu`` is not installed or not available for this machine."""
    machine = f"{platform.system()} on {platform.machine()}"
    if importlib.util.find_spec("libtpu") is not None:
        for name, value in COMPILER_SETTINGS.items():
            os.environ.setdefault(name, value)
    elif machine != "Linux on x86_64":
        raise UserError(
            f"libtpu, the TPU compiler, supports only Linux on x86_64; this is {machine}. Run it "
            f"in a container: {CONTAINER}"
        )
    else:
        raise UserError(
            "libtpu, the TPU compiler, is not installed; run: pip install -e '.[tpu]' (no TPU "
            "needed)."
        )


def lower_reference(config: TrainConfig, program: TrainProgram) -> jax.stages.Lowered:
    """Lower the pass that computes a preference run's reference log-probabilities."""
    scorer = scorer_program(config.compute.loss_chunk_tokens)
    with jax.set_mesh(program.mesh):
        return scorer.lower(program.base_model_shapes, _rows(abstract_batch(config, program.mesh)))


def lower_evaluation(config: TrainConfig, program: TrainProgram) -> jax.stages.Lowered:
    """Lower the pass over one batch of held-out text."""
    size = config.evaluation.batch_size
    # Held-out text is scored as next-token batches, whatever the run's objective is.
    as_text = replace(
        config, objective=NextTokenConfig(), global_batch_size=size, microbatch_size=0
    )
    with jax.set_mesh(program.mesh):
        return program.score.lower(
            program.state_shapes.model, _rows(abstract_batch(as_text, program.mesh))
        )


def _rows(batch: Batch) -> Batch:
    """Return the shapes and shardings of one micro-batch of ``batch``, placed for scoring."""

    def leaf(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            shape.shape[1:], shape.dtype, sharding=row_sharding(shape.sharding.mesh)
        )

    return jax.tree.map(leaf, batch)


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
    """Return the shapes and shardings of a step's batch: (micro-batches, rows, ...)."""
    rows = config.num_microbatches, config.microbatch_rows

    def leaf(dtype: Any, last: int = config.data.sequence_length) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*rows, last), dtype, sharding=batch_sharding(mesh))

    names = ("tokens", "targets", "segment_ids", "positions", "corpus")
    integers = {name: leaf(jnp.int32) for name in names}
    tokens = TokenBatch(**integers, loss_mask=leaf(jnp.float32), row=leaf(jnp.uint32, 2))
    if not isinstance(config.objective, PreferenceConfig):
        return tokens
    pairs = -(-config.data.sequence_length // ROW_TOKENS_PER_PAIR)
    mask, logprobs = leaf(jnp.float32, pairs), leaf(jnp.float32, 2 * pairs)
    if config.objective.loss == "kto":
        return UnpairedBatch(tokens, mask, mask, logprobs)
    return PreferenceBatch(tokens, mask, logprobs)
