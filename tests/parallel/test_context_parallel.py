"""Tests of context parallelism: zigzag order, and equal loss and gradients on shared rows."""

import math

import jax
import numpy as np
import pytest

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import MeshConfig, NextTokenConfig
from llama_cpt.data.batch import TokenBatch
from llama_cpt.data.loader import row_batch
from llama_cpt.data.rows import DOCUMENT_START
from llama_cpt.model.llama import Llama, abstract_llama
from llama_cpt.objectives.next_token import make_objective
from llama_cpt.parallel.context_parallel import from_zigzag, to_zigzag
from llama_cpt.parallel.mesh import make_mesh, partition_spec, shardings

MODEL = ModelConfig(
    # Large enough that the devices of a group share the rows of the embedding table.
    vocab_size=1024,
    embed_dim=32,
    mlp_dim=48,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=False,
    context_length=32,
)
MESHES = {
    "context 2": MeshConfig(fsdp=2, tensor=2, context=2),
    "context 4": MeshConfig(fsdp=2, tensor=1, context=4),
}
BOS = 0


def mesh_of(config: MeshConfig) -> jax.sharding.Mesh:
    return make_mesh(config, jax.devices()[: math.prod(vars(config).values())])


@pytest.mark.parametrize("context", [2, 3, 4])
def test_zigzag_order_and_back(context):
    row = np.arange(4 * context, dtype=np.int32).reshape(1, -1)
    chunks = row.reshape(-1, 2)
    want = [chunks[[n, 2 * context - 1 - n]] for n in range(context)]
    with jax.set_mesh(mesh_of(MeshConfig(1, 1, 1, context))):
        have = jax.jit(to_zigzag)(row)
        np.testing.assert_array_equal(
            np.asarray(have).reshape(-1), np.concatenate(want).reshape(-1)
        )
        np.testing.assert_array_equal(jax.jit(from_zigzag)(have), row)


def packed_rows() -> TokenBatch:
    """Return a batch of three rows with several documents each and one row with one document."""
    draw = np.random.default_rng(3)
    rows = draw.integers(1, MODEL.vocab_size, (4, MODEL.context_length + 1))
    rows[:3][draw.random((3, MODEL.context_length + 1)) < 0.15] = BOS
    marked = np.where(rows == BOS, rows.astype(np.uint32) | DOCUMENT_START, rows.astype(np.uint32))
    return row_batch(marked, np.array([0, 1, 0, 1], np.int32), np.arange(4))


def loss_and_gradients(mesh: jax.sharding.Mesh, config: ModelConfig) -> list[np.ndarray]:
    """Return the loss and the gradients of all parameters for ``packed_rows`` on ``mesh``.

    NEFTune is on, so that the test also covers the placement of its noise.
    """
    objective = make_objective(
        NextTokenConfig(z_loss=1e-3, neftune_alpha=5.0),
        num_corpora=2,
        loss_chunk_tokens=24,
        seed=0,
    )
    with jax.set_mesh(mesh):
        placed = shardings(abstract_llama(config, remat="full"), mesh)
        draw = jax.jit(lambda key: Llama(config, key, remat="full"), out_shardings=placed)
        model = draw(jax.random.key(0))
        rows = jax.device_put(packed_rows(), jax.NamedSharding(mesh, partition_spec("batch", None)))
        step = jax.jit(jax.value_and_grad(lambda model, rows: objective(model, rows)[0]))
        return [np.asarray(x) for x in jax.tree.leaves(step(model, rows))]


@pytest.fixture(scope="module")
def whole() -> list[np.ndarray]:
    """The result of ``loss_and_gradients`` on one device."""
    return loss_and_gradients(mesh_of(MeshConfig(1, 1, 1)), MODEL)


@pytest.mark.parametrize("name", [pytest.param("context 2", marks=pytest.mark.slow), "context 4"])
def test_shared_row_has_the_loss_and_gradients_of_a_whole_row(name, whole):
    found = loss_and_gradients(mesh_of(MESHES[name]), MODEL)
    for have, want in zip(found, whole, strict=True):
        assert np.linalg.norm(have - want) <= 1e-5 * np.linalg.norm(want)
