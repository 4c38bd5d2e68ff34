"""The optimum of a known surface comes back, or the law says how little it knows."""

from concurrent.futures import ProcessPoolExecutor
from functools import cache
import multiprocessing

import numpy as np
import pytest

from llama_cpt.mixture_law.analyse import analyse
from tests.mixture_law.truths import GOAL, study_points, truths

NAMES = (
    "quadratic",
    "d-cpt",
    "cpt-dynamics",
    "sailor",
    "quadratic, 0.5 as steep",
    "quadratic, 0.25 as steep",
)
TOLERANCE = np.array([0.05, 0.1])
"""Of ALMR, and of decades of the learning rate."""


@cache
def truth(name):
    return truths(study_points())[name]


def recover(name, number):
    """(value, low, high) of ALMR and of log10 of the rate, or None where it is refused."""
    found = analyse(truth(name).draw(number), goal=GOAL).recommendation
    return found and np.array([found.almr, np.log10(found.learning_rate)])


def judge(name, found):
    """Share of draws that are close, wide or refused; share of intervals that hold the truth."""
    given = np.array([bands for bands in found if bands is not None]).reshape(-1, 2, 3)
    optimum = np.array(truth(name).optimum())
    value, low, high = np.moveaxis(given, -1, 0)
    honest = (np.abs(value - optimum) <= TOLERANCE) | ((high - low) / 2 > TOLERANCE)
    held = (low <= optimum) & (optimum <= high)
    return 1 - (~honest.all(axis=1)).sum() / len(found), held


def test_some_draws_of_one_truth():
    honest, held = judge("d-cpt", [recover("d-cpt", number) for number in range(6)])
    assert honest >= 5 / 6 and (held.sum(axis=0) >= 4).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_draws(name, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        found = list(pool.map(recover, [name] * 100, range(100), chunksize=10))
    honest, held = judge(name, found)
    assert honest >= 0.9
    assert len(held) >= 50
    share = held.mean(axis=0)
    assert ((share >= 0.8) & (share <= 0.97)).all(), share
