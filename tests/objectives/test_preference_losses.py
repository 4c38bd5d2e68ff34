"""Each loss is its equation, in float64 by another road, and behaves at its corners."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.objectives import preference_losses as losses
from llama_cpt.objectives.preference_losses import Answers

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
    match name:
        case "sigmoid":
            return losses.sigmoid(chosen, rejected, beta=BETA, label_smoothing=0.0)
        case "cdpo":
            return losses.sigmoid(chosen, rejected, beta=BETA, label_smoothing=SMOOTHING)
        case "robust":
            return losses.robust(chosen, rejected, beta=BETA, label_smoothing=SMOOTHING)
        case "simpo":
            return losses.simpo(chosen, rejected, beta=BETA, gamma=GAMMA)
    return getattr(losses, name)(chosen, rejected, beta=BETA)


logprob = st.floats(-80, -0.03125, width=32)
tokens = st.integers(1, 20).map(float)


@pytest.mark.parametrize("name", EQUATIONS)
@settings(max_examples=60, deadline=None)
@given(numbers=st.tuples(logprob, logprob, tokens, logprob, logprob, tokens))
def test_is_its_equation(name, numbers):
    arrays = [jnp.array([number], jnp.float32) for number in numbers]
    have = ours(name, Answers(*arrays[:3]), Answers(*arrays[3:]))
    np.testing.assert_allclose(have[0], EQUATIONS[name](*numbers), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EQUATIONS)
def test_gradient_is_the_difference_quotient(name):
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


def test_log_2_at_the_reference():
    same = Answers(*(jnp.array([x]) for x in (-3.0, -3.0, 4.0)))
    other = Answers(*(jnp.array([x]) for x in (-9.0, -9.0, 2.0)))
    for smoothing in (0.0, SMOOTHING):
        loss = losses.sigmoid(same, other, beta=BETA, label_smoothing=smoothing)
        np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)


def test_certain_and_empty_answers_stay_finite():
    """Probability 1 has infinite odds; an answer that is not there has neither sum nor tokens."""

    def loss(logprobs: jax.Array) -> jax.Array:
        answers = Answers(logprobs, jnp.zeros(2), jnp.array([3.0, 0.0]))
        return jnp.sum(losses.orpo(answers, answers, beta=BETA))

    value, gradient = jax.value_and_grad(loss)(jnp.zeros(2))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("mean", [-2.0, 3.0])
def test_kto_is_its_equation(mean):
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
