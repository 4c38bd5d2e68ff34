"""The programs of a run lowered for TPUs that are not here: ``.compile()`` runs ``libtpu``."""

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

# Pairs a row that are lowered for; a run finds the number in its data.
ROW_TOKENS_PER_PAIR = 1024


# What libtpu reads when it is loaded: it asks nobody on the network what machine it is on, is
# content with any accelerator type, and two compilations at a time do not refuse each other.
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
    """The step that ``train`` would run, for ``topology`` (``v5p:4x4x8``); no TPU needed."""
    return lower_program(config, topology_program(config, topology, slices))


def topology_program(config: TrainConfig, topology: str, slices: int = 1) -> TrainProgram:
    """The programs of ``config`` on the chips of ``slices`` of ``topology``."""
    require_compiler()
    return make_program(config, topology_mesh(config.mesh, topology, slices), "tpu")


def lower_program(config: TrainConfig, program: TrainProgram) -> jax.stages.Lowered:
    """``program``'s step, its arguments abstract."""
    with jax.set_mesh(program.mesh):
        rate = jax.ShapeDtypeStruct((), jnp.float32)
        return program.step.lower(program.state_shapes, abstract_batch(config, program.mesh), rate)


def require_compiler() -> None:
    """Raise UserError where ``libtpu`` is not installed, or made for another kind of machine."""
    machine = f"{platform.system()} on {platform.machine()}"
    if importlib.util.find_spec("libtpu") is not None:
        for name, value in COMPILER_SETTINGS.items():
            os.environ.setdefault(name, value)
    elif machine != "Linux on x86_64":
        raise UserError(
            f"libtpu, the TPU compiler, is made for Linux on x86_64 only; this is {machine}. In a "
            f"container: {CONTAINER}"
        )
    else:
        raise UserError(
            "libtpu, the TPU compiler, is not installed: pip install -e '.[tpu]' (no TPU needed)."
        )


def lower_reference(config: TrainConfig, program: TrainProgram) -> jax.stages.Lowered:
    """The pass that scores a preference config's rows before its first step."""
    scorer = scorer_program(config.compute.loss_chunk_tokens)
    with jax.set_mesh(program.mesh):
        return scorer.lower(program.base_model_shapes, _rows(abstract_batch(config, program.mesh)))


def lower_evaluation(config: TrainConfig, program: TrainProgram) -> jax.stages.Lowered:
    """The pass over one batch of held-out text."""
    size = config.evaluation.batch_size
    plain = replace(config, objective=NextTokenConfig(), global_batch_size=size, microbatch_size=0)
    with jax.set_mesh(program.mesh):
        return program.score.lower(
            program.state_shapes.model, _rows(abstract_batch(plain, program.mesh))
        )


def _rows(batch: Batch) -> Batch:
    """Of one micro-batch, as what is only scored is placed."""

    def leaf(one: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            one.shape[1:], one.dtype, sharding=row_sharding(one.sharding.mesh)
        )

    return jax.tree.map(leaf, batch)


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
    """Shapes and shardings of what one step takes: (micro-batches, rows, ...)."""
    rows = config.num_microbatches, config.microbatch_rows

    def leaf(dtype: Any, last: int = config.data.sequence_length) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*rows, last), dtype, sharding=batch_sharding(mesh))

    names = ("tokens", "targets", "segment_ids", "positions", "corpus")
    integers = {name: leaf(jnp.int32) for name in names}
    tokens = TokenBatch(**integers, loss_mask=leaf(jnp.float32), row=leaf(jnp.uint32, 2))
    if not isinstance(config.objective, PreferenceConfig):
        return tokens
    units = -(-config.data.sequence_length // ROW_TOKENS_PER_PAIR)
    mask, logprobs = leaf(jnp.float32, units), leaf(jnp.float32, 2 * units)
    if config.objective.loss == "kto":
        return UnpairedBatch(tokens, mask, mask, logprobs)
    return PreferenceBatch(tokens, mask, logprobs)
