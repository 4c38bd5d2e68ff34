"""Each loss equals its equation in float64, is finite for extreme values, and is in ``LOSSES``."""

import math
from typing import Any, get_args, get_type_hints

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.config.schema import PreferenceConfig
from llama_cpt.objectives import preference_losses as losses
from llama_cpt.objectives.preference_losses import LOSSES, Answers
from llama_cpt.runtime.errors import UserError

BETA, SMOOTHING, GAMMA = 0.3, 0.2, 0.7


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def log_odds(p: float, n: float) -> float:
    return p / n - math.log(-math.expm1(p / n))


# (p_w, q_w, n_w, p_l, q_l, n_l) -> loss, in plain Python.
EQUATIONS = {
    "sigmoid": lambda pw, qw, nw, pl, ql, nl: -log_sigmoid(BETA * (pw - qw - pl + ql)),
    "cdpo": lambda pw, qw, nw, pl, ql, nl: (
        -(1 - SMOOTHING) * log_sigmoid(BETA * (pw - qw - pl + ql))
        - SMOOTHING * log_sigmoid(-BETA * (pw - qw - pl + ql))
    ),
    "robust": lambda pw, qw, nw, pl, ql, nl: (
        (
            -(1 - SMOOTHING) * log_sigmoid(BETA * (pw - qw - pl + ql))
            + SMOOTHING * log_sigmoid(-BETA * (pw - qw - pl + ql))
        )
        / (1 - 2 * SMOOTHING)
    ),
    "hinge": lambda pw, qw, nw, pl, ql, nl: max(0.0, 1 - BETA * (pw - qw - pl + ql)),
    "ipo": lambda pw, qw, nw, pl, ql, nl: ((pw - qw) / nw - (pl - ql) / nl - 1 / (2 * BETA)) ** 2,
    "sigmoid_norm": lambda pw, qw, nw, pl, ql, nl: (
        -log_sigmoid(BETA * ((pw - qw) / nw - (pl - ql) / nl))
    ),
    "simpo": lambda pw, qw, nw, pl, ql, nl: -log_sigmoid(BETA * (pw / nw - pl / nl) - GAMMA),
    "orpo": lambda pw, qw, nw, pl, ql, nl: (
        -pw / nw - BETA * log_sigmoid(log_odds(pw, nw) - log_odds(pl, nl))
    ),
}


def ours(name: str, chosen: Answers, rejected: Answers) -> jax.Array:
    """Return the loss computed by the entry of ``LOSSES``, as in training."""
    loss: Any = "sigmoid" if name == "cdpo" else name
    smoothing = SMOOTHING if name in ("cdpo", "robust") else 0.0
    config = PreferenceConfig(loss, beta=BETA, label_smoothing=smoothing, gamma=GAMMA)
    return LOSSES[loss].bind(config)(chosen, rejected)


def test_table_and_config_name_the_same_losses():
    named = set(get_args(get_type_hints(PreferenceConfig)["loss"]))
    assert named == set(LOSSES), (
        "PreferenceConfig.loss and LOSSES differ. To add a loss: enter it in LOSSES "
        "(llama_cpt/objectives/preference_losses.py), add its name to the Literal of "
        "PreferenceConfig.loss (llama_cpt/config/schema.py), its equation to EQUATIONS in this "
        "file and a row to the table in docs/guide/preferences.md."
    )


def test_every_loss_of_pairs_has_an_equation_here():
    pairs = {name for name, loss in LOSSES.items() if loss.takes_pairs}
    assert pairs == EQUATIONS.keys() - {"cdpo"}


@pytest.mark.parametrize("name", LOSSES)
def test_options_of_a_loss_are_the_config_fields_that_it_accepts(name):
    loss = LOSSES[name]
    assert set(loss.options) <= vars(PreferenceConfig(name)).keys()
    if "label_smoothing" in loss.options:
        PreferenceConfig(name, label_smoothing=SMOOTHING)
    else:
        with pytest.raises(UserError, match=r"objective\.label_smoothing"):
            PreferenceConfig(name, label_smoothing=SMOOTHING)


@pytest.mark.parametrize("name", EQUATIONS)
def test_reference_free_losses_are_those_that_ignore_the_reference(name):
    one = jnp.ones(1)

    def loss(reference: jax.Array) -> jax.Array:
        chosen = Answers(-9 * one, reference, 4 * one)
        return ours(name, chosen, Answers(-12 * one, -13 * one, 6 * one)).sum()

    ignored = not np.any(jax.grad(loss)(-7.5 * one))
    assert ignored == LOSSES["sigmoid" if name == "cdpo" else name].reference_free


logprob = st.floats(-80, -0.03125, width=32)
tokens = st.integers(1, 20).map(float)


@pytest.mark.parametrize("name", EQUATIONS)
@settings(max_examples=60, deadline=None)
@given(numbers=st.tuples(logprob, logprob, tokens, logprob, logprob, tokens))
def test_loss_equals_its_equation(name, numbers):
    arrays = [jnp.array([number], jnp.float32) for number in numbers]
    have = ours(name, Answers(*arrays[:3]), Answers(*arrays[3:]))
    np.testing.assert_allclose(have[0], EQUATIONS[name](*numbers), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EQUATIONS)
def test_gradient_equals_the_difference_quotient(name):
    numbers = np.array([-9.0, -7.5, 4.0, -12.0, -13.0, 6.0])

    def loss(policy: jax.Array) -> jax.Array:
        fixed = [jnp.float32(number) for number in numbers]
        chosen = Answers(policy[0], fixed[1], fixed[2])
        return ours(name, chosen, Answers(policy[1], fixed[4], fixed[5]))

    have = jax.grad(loss)(jnp.array([numbers[0], numbers[3]], jnp.float32))
    for place, gradient in zip((0, 3), have, strict=True):
        step = np.where(np.arange(6) == place, 1e-5, 0.0)
        rise = EQUATIONS[name](*(numbers + step)) - EQUATIONS[name](*(numbers - step))
        np.testing.assert_allclose(gradient, rise / 2e-5, rtol=1e-4, atol=1e-5)


def test_dpo_loss_is_log_2_at_the_reference():
    same = Answers(*(jnp.array([x]) for x in (-3.0, -3.0, 4.0)))
    other = Answers(*(jnp.array([x]) for x in (-9.0, -9.0, 2.0)))
    for smoothing in (0.0, SMOOTHING):
        loss = losses.sigmoid(same, other, beta=BETA, label_smoothing=smoothing)
        np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)


def test_orpo_is_finite_for_certain_and_absent_answers():
    """An answer with probability 1 has infinite odds; a missing answer has sum 0 and no tokens."""

    def loss(logprobs: jax.Array) -> jax.Array:
        answers = Answers(logprobs, jnp.zeros(2), jnp.array([3.0, 0.0]))
        return jnp.sum(losses.orpo(answers, answers, beta=BETA))

    value, gradient = jax.value_and_grad(loss)(jnp.zeros(2))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("mean", [-2.0, 3.0])
def test_kto_equals_its_equation(mean):
    draw = np.random.default_rng(0)
    policy, reference = draw.normal(-9, 4, (2, 6)).astype(np.float32)
    good = np.array([1, 0, 0, 1, 1, 0], np.float32)
    there = np.array([1, 1, 1, 1, 1, 0], np.float32)
    ratio = np.float64(policy) - reference
    shifted = policy + np.float32(mean - ratio[:5].mean())
    ones = jnp.ones(6)
    divergence = losses.kto_divergence(
        Answers(jnp.asarray(shifted), jnp.asarray(reference), ones), jnp.asarray(there)
    )
    np.testing.assert_allclose(divergence, max(mean, 0.0), atol=1e-5)
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    have = losses.kto(
        Answers(jnp.asarray(policy), jnp.asarray(reference), ones),
        jnp.asarray(good),
        divergence,
        beta=BETA,
        **weights,
    )
    for i in range(6):
        gain = BETA * (ratio[i] - max(mean, 0.0))
        want = 1.5 / (1 + math.exp(gain)) if good[i] else 0.5 / (1 + math.exp(-gain))
        np.testing.assert_allclose(have[i], want, rtol=1e-4)
