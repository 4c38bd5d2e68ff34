"""The programs of a run lowered for TPUs that are not here: ``.compile()`` runs ``libtpu``."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from llama_cpt.batch import Batch, PreferenceBatch, TokenBatch, UnpairedBatch
from llama_cpt.config import PreferenceConfig, TrainConfig
from llama_cpt.sharding import topology_mesh
from llama_cpt.training.reference import row_sharding, scorer_program
from llama_cpt.training.run import batch_sharding, make_program

# Pairs a row that are lowered for; a run finds the number in its data.
ROW_TOKENS_PER_PAIR = 1024


def lower_step(config: TrainConfig, topology: str) -> jax.stages.Lowered:
    """The step that ``train`` would run, for ``topology`` (``v5p:4x4x8``); no TPU needed."""
    program = make_program(config, topology_mesh(config.mesh, topology), "tpu")
    with jax.set_mesh(program.mesh):
        rate = jax.ShapeDtypeStruct((), jnp.float32)
        return program.step.lower(program.abstract, abstract_batch(config, program.mesh), rate)


def lower_reference(config: TrainConfig, topology: str) -> jax.stages.Lowered:
    """The pass that scores a preference config's rows before its first step."""
    program = make_program(config, topology_mesh(config.mesh, topology), "tpu")
    rows = row_sharding(program.mesh)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=rows),
        abstract_batch(config, program.mesh),
    )
    scorer = scorer_program(config.compute.loss_chunk_tokens)
    with jax.set_mesh(program.mesh):
        return scorer.lower(program.plain, batch)


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
    """Shapes and shardings of what one step takes: (micro-batches, rows, ...)."""
    rows = config.num_microbatches, config.global_batch_size // config.num_microbatches

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
