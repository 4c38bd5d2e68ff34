"""A step does not depend on the mesh or the micro-batch size; AdamW and schedules are correct."""

from dataclasses import replace
import math
import re
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.config.schema import NextTokenConfig, OptimizerConfig
from llama_cpt.model.llama import Llama, abstract_llama
from llama_cpt.objectives.next_token import make_objective
from llama_cpt.parallel.mesh import partition_spec
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.optimizer import check_schedule, learning_rate, make_optimizer
from llama_cpt.training.train_step import (
    abstract_state,
    init_state,
    jit_train_step,
    make_train_step,
)
from tests.training.tiny_step import MODEL, OPTIMIZER, mesh_of, params, ragged_batch


class Setup:
    """A jitted training step and the current state."""

    def __init__(self, mesh_name: str, optimizer: OptimizerConfig = OPTIMIZER) -> None:
        self.mesh = mesh_of(mesh_name)
        tx = make_optimizer(optimizer)
        objective = make_objective(
            NextTokenConfig(z_loss=1e-3), num_corpora=2, loss_chunk_tokens=24, seed=0
        )
        state_shardings = jax.tree.map(
            lambda leaf: leaf.sharding, abstract_state(abstract_llama(MODEL), tx, self.mesh)
        )
        self.step = jit_train_step(make_train_step(objective, tx), state_shardings)
        with jax.set_mesh(self.mesh):
            self.state = init_state(lambda: Llama(MODEL, jax.random.key(0)), tx, self.mesh)

    def run(self, num_microbatches: int, rate: float = 1e-2) -> dict[str, Any]:
        """Run one step, replace the state, and return the metrics."""
        sharding = jax.NamedSharding(self.mesh, partition_spec("microbatch", "batch", None))
        batch = jax.device_put(ragged_batch(num_microbatches), sharding)
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.step(self.state, batch, np.float32(rate))
        return jax.device_get(metrics)

    def lowered(self) -> str:
        """Return the StableHLO text of the step."""
        with jax.set_mesh(self.mesh):
            return self.step.lower(self.state, ragged_batch(1), np.float32(0)).as_text()


@pytest.fixture(scope="module")
def whole() -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Metrics of two steps and the parameters after them, on one device with one micro-batch."""
    setup = Setup("1x1")
    metrics = [setup.run(1), setup.run(1)]
    return metrics, [np.asarray(x) for x in jax.tree.leaves(setup.state.trained)]


@pytest.mark.parametrize(
    ("mesh_name", "num_microbatches"),
    [
        ("1x1", 4),
        pytest.param("8x1", 1, marks=pytest.mark.slow),
        pytest.param("2x2x2", 4, marks=pytest.mark.slow),
        pytest.param("1x1", 2, marks=pytest.mark.slow),
        pytest.param("4x2", 2, marks=pytest.mark.slow),
    ],
)
def test_meshes_and_microbatches_do_not_change_the_step(mesh_name, num_microbatches, whole):
    setup = Setup(mesh_name)
    for expected in whole[0]:
        metrics = setup.run(num_microbatches)
        for have, want in zip(jax.tree.leaves(metrics), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-5)
    for have, want in zip(jax.tree.leaves(setup.state.trained), whole[1], strict=True):
        # Adam's first updates are signs; if a gradient is 0 up to rounding they may differ.
        assert np.mean(np.abs(have - want) > 1e-4) < 1e-3


def test_sums_are_the_loss_in_parts(whole):
    metrics = whole[0][0]
    nll, weight = metrics["sums"]["train/nll"]
    parts, weights = metrics["sums"]["corpus_loss"]
    assert weight == ragged_batch(1).loss_mask.sum() == weights.sum()
    np.testing.assert_allclose(parts.sum(), nll, rtol=1e-6)
    # The z-loss is in the loss and not in the nll.
    assert metrics["loss"] > nll / weight


def test_moments_lie_as_their_parameters():
    setup = Setup("2x2x2")
    setup.run(4)
    adam = setup.state.opt_state[1]
    for moments in (adam.mu, adam.nu):
        pairs = zip(params(setup.state.trained), params(moments), strict=True)
        for parameter, moment in pairs:
            assert moment[...].sharding == parameter[...].sharding
            axes = parameter.get_metadata("axes")
            assert moment[...].sharding.spec == partition_spec(*axes)
            # Only norm scales are replicated on every device.
            assert moment[...].sharding.is_fully_replicated == ("norm" in axes)


def test_two_rates_one_compilation():
    setup = Setup("2x2x2")
    before = [np.asarray(x) for x in jax.tree.leaves(setup.state.trained)]
    setup.run(4, rate=0.0)
    for have, want in zip(jax.tree.leaves(setup.state.trained), before, strict=True):
        np.testing.assert_array_equal(have, want)
    setup.run(4, rate=1e-3)
    assert any(
        (np.asarray(have) != want).any()
        for have, want in zip(jax.tree.leaves(setup.state.trained), before, strict=True)
    )
    step: Any = setup.step
    assert step._cache_size() == 1


@pytest.mark.parametrize("clip_norm", [1e9, 0.05])
def test_update_is_adamw(clip_norm):
    """Three steps equal AdamW in float64 (arXiv 1711.05101, algorithm 2)."""
    config = replace(OPTIMIZER, clip_norm=clip_norm, weight_decay=0.3)
    optimizer = make_optimizer(config)
    draw = np.random.default_rng(0)
    values = {"matrix": draw.normal(size=(4, 3)), "norm": draw.normal(size=3)}
    axes = {"matrix": ("embed", "mlp"), "norm": ("norm",)}

    def wrap(arrays: dict[str, Any]) -> dict[str, nnx.Param[Any]]:
        return {
            name: nnx.Param(jnp.asarray(x, jnp.float32), axes=axes[name])
            for name, x in arrays.items()
        }

    model = wrap(values)
    state = optimizer.init(model)
    first = {name: np.zeros_like(x) for name, x in values.items()}
    second = {name: np.zeros_like(x) for name, x in values.items()}
    rate, b1, b2 = 0.05, config.beta1, config.beta2
    for step in range(1, 4):
        gradients = {name: draw.normal(size=x.shape) for name, x in values.items()}
        updates, state = optimizer.update(wrap(gradients), state, model)
        model = jax.tree.map(lambda p, u: p - rate * u, model, updates)
        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name, gradient in gradients.items():
            gradient = gradient * min(1.0, clip_norm / norm)
            first[name] = b1 * first[name] + (1 - b1) * gradient
            second[name] = b2 * second[name] + (1 - b2) * gradient**2
            adam = first[name] / (1 - b1**step)
            adam /= np.sqrt(second[name] / (1 - b2**step)) + config.eps
            decay = config.weight_decay if name == "matrix" else 0.0
            values[name] = values[name] - rate * (adam + decay * values[name])
    for name, want in values.items():
        np.testing.assert_allclose(model[name][...], want, rtol=1e-5, atol=1e-6)


def rates(num_steps: int, **fields) -> list[float]:
    config = OptimizerConfig(peak_learning_rate=1.0, **fields)
    check_schedule(config, num_steps)
    return [learning_rate(config, step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant", "linear"])
def test_schedule_corners(schedule):
    fields = {"decay_steps": 10} if schedule == "wsd" else {}
    have = rates(50, schedule=schedule, warmup_steps=4, final_learning_rate_fraction=0.2, **fields)
    np.testing.assert_allclose(have[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(have[-1], 1.0 if schedule == "constant" else 0.2)
    assert all(a >= b for a, b in zip(have[4:], have[5:], strict=False))
    if schedule == "wsd":
        assert set(have[4:40]) == {1.0} and have[40] < 1.0
        np.testing.assert_allclose(np.diff(have[39:]), -0.08)
    if schedule == "linear":
        np.testing.assert_allclose(np.diff(have[4:]), -0.8 / 45)
    if schedule == "cosine":
        # In the middle of the decay, the rate is the mean of the peak and the final rate.
        np.testing.assert_allclose((have[26] + have[27]) / 2, 0.6)


@pytest.mark.parametrize("warmup", [0, 1, 3, 8])
@pytest.mark.parametrize("num_steps", [9, 10])
def test_decay_is_from_the_peak_to_the_final_rate(warmup, num_steps):
    """The decay steps of cosine and linear are evenly spaced points of the curve, ends included."""
    final, points = 0.1, np.linspace(0, 1, num_steps - warmup)
    curves = {
        "cosine": final + (1 - final) * (1 + np.cos(np.pi * points)) / 2,
        "linear": 1 - (1 - final) * points,
    }
    rising = np.arange(1, warmup + 1) / (warmup + 1)
    for schedule, decay in curves.items():
        have = rates(num_steps, schedule=schedule, warmup_steps=warmup)
        np.testing.assert_allclose(have, [*rising, *decay], rtol=1e-12, err_msg=schedule)
        assert max(have) == 1.0


def test_earlier_version_of_a_schedule_begins_its_decay_a_step_early():
    """A 9-step cosine began at 0.973 of the peak, and a 10-step linear decay at 0.91."""
    for schedule, num_steps, first in (("cosine", 9, 0.97286), ("linear", 10, 0.91)):
        fields: dict[str, Any] = {"schedule": schedule}
        config = OptimizerConfig(1.0, **fields)
        have = [learning_rate(config, step, num_steps, version=1) for step in range(num_steps)]
        np.testing.assert_allclose([have[0], have[-1]], [first, 0.1], rtol=1e-4)
    wsd = OptimizerConfig(1.0, "wsd", decay_steps=4)
    for step in range(9):
        assert learning_rate(wsd, step, 9, version=1) == learning_rate(wsd, step, 9)


def test_warmup_starts_from_the_initial_rate():
    have = rates(20, schedule="constant", warmup_steps=9, initial_learning_rate=0.5)
    np.testing.assert_allclose(have[:10], np.linspace(0.55, 1.0, 10))
    down = rates(20, schedule="constant", warmup_steps=9, initial_learning_rate=2.0)
    np.testing.assert_allclose(down[:10], np.linspace(1.9, 1.0, 10))


@pytest.mark.parametrize(
    "fields", [{"schedule": "wsd"}, {"warmup_steps": 51}, {"schedule": "wsd", "decay_steps": 51}]
)
def test_phases_that_do_not_fit_are_rejected(fields):
    with pytest.raises(UserError, match="optimizer"):
        rates(50, **fields)


@pytest.mark.parametrize(("mesh_name", "exchanges"), [("1x1", False), ("4x2", True)])
def test_step_of_one_device_has_no_collectives(mesh_name, exchanges):
    """On a CPU, XLA copies the embedding and its gradient for a collective on one device."""
    found = re.findall(
        "stablehlo.(all_gather|all_reduce|all_to_all|reduce_scatter)", Setup(mesh_name).lowered()
    )
    assert bool(found) == exchanges
