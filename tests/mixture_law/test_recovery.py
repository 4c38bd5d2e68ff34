"""Recovery of known optima from noisy runs, and coverage of the intervals."""

from concurrent.futures import ProcessPoolExecutor
from functools import cache
import multiprocessing
import os

import numpy as np
import pytest
from scipy.stats import binom

from llama_cpt.mixture_law.analyze import analyze
from tests.mixture_law.truths import OBJECTIVE, study_runs, truths

NAMES = (
    "quadratic",
    "d-cpt",
    "cpt-dynamics",
    "sailor",
    "quadratic, 0.5 as steep",
    "quadratic, 0.25 as steep",
)
EACH_CHANGE = "d-cpt", "quadratic, 0.5 as steep"
"""Surfaces that are tested in CI; the others run under `make proofs`."""
DRAWS = int(os.environ.get("LLAMA_CPT_DRAWS", "40"))
"""Number of noisy tables per surface."""
TOLERANCE = np.array([0.05, 0.1])
"""Largest acceptable errors of ALMR and of log10 of the learning rate."""


@cache
def truth(name):
    """Return the surface of a name in ``NAMES``."""
    return truths(study_runs())[name]


def recover(name, number):
    """Return the intervals of ALMR and of log10 of the learning rate, (2, 3); None for a refusal.

    ``number`` is the seed of the noise.
    """
    found = analyze(truth(name).draw(number), objective=OBJECTIVE).recommendation
    return found and np.array([found.almr, np.log10(np.array(found.learning_rate))])


def judge(name, found):
    """Return the share of acceptable results, and whether each interval covers the true optimum.

    A result is acceptable if it is a refusal, or if both ALMR and the learning rate have an error
    of at most ``TOLERANCE`` or an interval with a half-width above ``TOLERANCE``.
    """
    given = np.array([intervals for intervals in found if intervals is not None]).reshape(-1, 2, 3)
    optimum = np.array(truth(name).optimum())
    value, low, high = np.moveaxis(given, -1, 0)
    honest = (np.abs(value - optimum) <= TOLERANCE) | ((high - low) / 2 > TOLERANCE)
    held = (low <= optimum) & (optimum <= high)
    return 1 - (~honest.all(axis=1)).sum() / len(found), held


@pytest.mark.slow
def test_some_draws_of_one_truth():
    honest, held = judge("d-cpt", [recover("d-cpt", number) for number in range(6)])
    assert honest >= 5 / 6 and (held.sum(axis=0) >= 4).all()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in EACH_CHANGE else pytest.mark.proof)
        for name in NAMES
    ],
)
def test_many_draws(name):
    """At least 90 % of the results are acceptable, and the coverage of intervals is 80 to 97 %.

    The number of covered optima is tested against the 1 % quantile of the binomial distribution
    for 80 % and the 99 % quantile of that for 97 %.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        found = list(pool.map(recover, [name] * DRAWS, range(DRAWS), chunksize=10))
    honest, held = judge(name, found)
    assert honest >= 0.9
    assert len(held) >= DRAWS / 2
    low, high = binom.ppf(0.01, len(held), 0.8), binom.ppf(0.99, len(held), 0.97)
    times = held.sum(axis=0)
    assert ((times >= low) & (times <= high)).all(), times
