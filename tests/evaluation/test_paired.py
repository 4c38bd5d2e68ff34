"""Coverage of bootstrap intervals on simulated pairs with a known true difference."""

import numpy as np
import pytest

from llama_cpt.evaluation.paired import classify, corrected_level, ratio_intervals

SETS = 1000
TRUTH = 0.05


def exact_matches(rng):
    """Right or wrong answers that are mostly equal, with the two added pseudo-examples."""
    change = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.75, 0.15], size=(SETS, 150))
    change = np.concatenate([change, np.ones((SETS, 1)), -np.ones((SETS, 1))], axis=1)
    return change, np.ones_like(change)


def documents(rng):
    """Differences in nats of documents of very different lengths, and the first model's nats."""
    before = rng.lognormal(6, 1, (SETS, 300)) * rng.normal(1, 0.15, (SETS, 300))
    return before * (TRUTH + rng.normal(0, 0.06, before.shape)), before


def subjects(rng):
    """57 groups of different sizes, with a gain that differs between groups."""
    examples = rng.integers(20, 300, (SETS, 57))
    right = np.clip(0.5 + TRUTH + rng.normal(0, 0.06, examples.shape), 0, 1)
    change = rng.binomial(examples, right) - rng.binomial(examples, 0.5)
    return change.astype(float), examples.astype(float)


def few(rng):
    """Differences of a continuous score on 25 examples."""
    change = rng.normal(TRUTH, 1, (SETS, 25))
    return change, np.ones_like(change)


@pytest.mark.parametrize("world", [exact_matches, documents, subjects, few])
def test_interval_covers_the_truth_at_its_level(world):
    change, over = world(np.random.default_rng(1))
    # All sets use the same resampling weights, as if each set were resampled alone.
    plain, corrected = ratio_intervals(change, over, [0.95, corrected_level(20)], draws=4000)
    assert 0.93 <= covered(plain) <= 0.97
    assert covered(corrected) >= 0.99


def covered(intervals):
    return np.mean((intervals[:, 0] <= TRUTH) & (intervals[:, 1] >= TRUTH))


def test_corrected_intervals_are_correct_at_once():
    """For 20 true differences of 0, at least one corrected interval is wrong in 5 % of cases."""
    rng = np.random.default_rng(2)
    change = rng.normal(0, 1, (400 * 20, 80))
    plain, corrected = ratio_intervals(
        change, np.ones_like(change), [0.95, corrected_level(20)], draws=1000
    )
    wrong = [
        np.mean(((low > 0) | (high < 0)).reshape(400, 20).any(1))
        for low, high in (plain.T, corrected.T)
    ]
    assert wrong[0] > 0.5 and wrong[1] < 0.08


def test_single_unit_has_an_infinite_interval():
    found = ratio_intervals(np.array([[0.3]]), np.array([[1.0]]), [0.95])
    assert found.tolist() == [[[-np.inf, np.inf]]]


@pytest.mark.parametrize(
    ("low", "high", "mark"),
    [
        (0.03, 0.09, "gained"),
        (0.001, 0.09, "gained"),
        (-0.09, -0.03, "forgotten"),
        (-0.01, 0.01, "kept"),
        (0.001, 0.01, "kept"),
        (-0.01, 0.05, "no significant difference"),
        (-0.09, 0.09, "no significant difference"),
        (-np.inf, np.inf, "inconclusive"),
    ],
)
def test_classify_follows_interval_and_margin(low, high, mark):
    assert classify(low, high, 0.02) == mark
