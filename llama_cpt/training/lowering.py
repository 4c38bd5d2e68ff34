"""Ahead-of-time lowering of a run's programs for TPU topologies.

No TPU is needed, because the ``compile()`` method of the lowered programs runs the compiler in the
package ``libtpu``.
"""

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
from llama_cpt.training.train_step import Limits

ROW_TOKENS_PER_PAIR = 1024
"""Assumed number of tokens per preference pair in the result of ``abstract_batch``.

Training does not use this value, because the number of pairs per row depends on the data.
"""

# Environment variables that libtpu reads when it is loaded. With these values, libtpu does not
# query the metadata server for the machine's type, and several processes can compile at the same
# time.
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


def topology_program(config: TrainConfig, topology: str, slices: int = 1) -> TrainProgram:
    """Return the programs of ``config`` for ``slices`` slices of ``topology``.

    No TPU is needed. Raises UserError if ``libtpu`` cannot be used or the topology is unknown.
    """
    require_compiler()
    return make_program(config, topology_mesh(config.mesh, topology, slices), "tpu")


def lower_program(config: TrainConfig, program: TrainProgram) -> jax.stages.Lowered:
    """Lower the training step of ``program`` with ShapeDtypeStructs as arguments."""
    with jax.set_mesh(program.mesh):
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        limits = (Limits(scalar, scalar),) if config.spikes.action == "skip" else ()
        batch = abstract_batch(config, program.mesh)
        return program.step.lower(program.state_shapes, batch, scalar, *limits)


def require_compiler() -> None:
    """Check that ``libtpu``, the TPU compiler, is installed, and set its environment variables.

    Raises UserError if ``libtpu`` is not installed. The package supports only Linux on x86_64.
    """
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
            "libtpu, the TPU compiler, is not installed; run: pip install -e '.[tpu]' (no TPU is "
            "needed)."
        )


def lower_reference(config: TrainConfig, program: TrainProgram) -> jax.stages.Lowered:
    """Lower the program that computes the reference log-probabilities of one micro-batch."""
    scorer = scorer_program(config.compute.loss_chunk_tokens)
    with jax.set_mesh(program.mesh):
        batch = _microbatch(abstract_batch(config, program.mesh), program.mesh)
        return scorer.lower(program.base_model_shapes, batch)


def lower_evaluation(config: TrainConfig, program: TrainProgram) -> jax.stages.Lowered:
    """Lower the program that scores one batch of held-out text."""
    size = config.evaluation.batch_size
    # Held-out text is scored in next-token batches for every objective.
    as_text = replace(
        config, objective=NextTokenConfig(), global_batch_size=size, microbatch_size=0
    )
    with jax.set_mesh(program.mesh):
        batch = _microbatch(abstract_batch(as_text, program.mesh), program.mesh)
        return program.score.lower(program.state_shapes.model, batch)


def _microbatch(batch: Batch, mesh: Mesh) -> Batch:
    """Return one micro-batch of the abstract ``batch`` with the sharding for scoring."""

    def leaf(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape[1:], shape.dtype, sharding=row_sharding(mesh))

    return jax.tree.map(leaf, batch)


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
    """Return a step's batch in which every array is a ShapeDtypeStruct with a sharding.

    Every field has the leading dimensions (micro-batches, rows per micro-batch).
    """
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
