"""A LoRA step does not depend on the mesh or the micro-batch size, and updates only adapters."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from llama_cpt.config.schema import LoraConfig, NextTokenConfig
from llama_cpt.model.llama import Llama, abstract_llama
from llama_cpt.model.lora import Adapters, abstract_adapters
from llama_cpt.objectives.next_token import make_objective
from llama_cpt.parallel.mesh import partition_spec, shardings
from llama_cpt.training.optimizer import make_optimizer
from llama_cpt.training.train_step import (
    abstract_state,
    init_state,
    jit_train_step,
    make_train_step,
)
from tests.training.tiny_step import MODEL, OPTIMIZER, mesh_of, params, ragged_batch

LORA = LoraConfig(rank=3, alpha=12.0, targets=("query", "value", "output", "gate", "down"))


def two_steps(mesh_name: str, num_microbatches: int) -> tuple:
    """Return the metrics of two steps and the state after the second step."""
    mesh, tx = mesh_of(mesh_name), make_optimizer(OPTIMIZER)
    objective = make_objective(NextTokenConfig(), num_corpora=2, loss_chunk_tokens=24, seed=0)
    model = abstract_llama(MODEL)
    abstract = abstract_state(abstract_adapters(LORA, model), tx, mesh, model)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = jit_train_step(make_train_step(objective, tx), state_shardings)
    batch = jax.device_put(
        ragged_batch(num_microbatches),
        jax.NamedSharding(mesh, partition_spec("microbatch", "batch", None)),
    )
    metrics = []
    with jax.set_mesh(mesh):
        state = init_state(lambda: Adapters(LORA, model, jax.random.key(1)), tx, mesh)
        frozen = jax.device_put(Llama(MODEL, jax.random.key(0)), shardings(model, mesh))
        state = replace(state, frozen=frozen)
        for _ in range(2):
            state, values = step(state, batch, np.float32(1e-2))
            metrics.append(jax.device_get(values))
    return metrics, state


@pytest.fixture(scope="module")
def whole() -> tuple:
    return two_steps("1x1", 1)


@pytest.mark.parametrize(
    ("mesh_name", "num_microbatches"),
    [("1x1", 4), ("4x2", 2)],
)
@pytest.mark.slow  # test_train_step.py has a fast test of meshes and micro-batches.
def test_meshes_and_microbatches_do_not_change_the_step(mesh_name, num_microbatches, whole):
    metrics, state = two_steps(mesh_name, num_microbatches)
    for have, want in zip(jax.tree.leaves(metrics), jax.tree.leaves(whole[0]), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5)
    pairs = zip(jax.tree.leaves(state.trained), jax.tree.leaves(whole[1].trained), strict=True)
    for have, want in pairs:
        # Adam's first updates are signs; if a gradient is 0 up to rounding they may differ.
        assert np.mean(np.abs(have - np.asarray(want)) > 1e-4) < 1e-2
    moments = state.opt_state[1]
    for tree in (moments.mu, moments.nu, state.trained):
        for parameter in params(tree):
            assert parameter[...].sharding.spec == partition_spec(*parameter.get_metadata("axes"))


@pytest.mark.slow
def test_step_updates_only_adapters(whole):
    metrics, state = whole
    assert metrics[1]["loss"] < metrics[0]["loss"]
    before = Adapters(LORA, abstract_llama(MODEL), jax.random.key(1))
    for target in LORA.targets:
        was, now = getattr(before, target), getattr(state.trained, target)
        assert (np.asarray(now.a[...]) != was.a[...]).any() and np.asarray(now.b[...]).any()
    frozen = jax.tree.leaves(Llama(MODEL, jax.random.key(0)))
    for have, want in zip(jax.tree.leaves(state.frozen), frozen, strict=True):
        np.testing.assert_array_equal(have, want)
