"""Which form predicts runs that it has not seen."""

from dataclasses import replace

import numpy as np

from llama_cpt.mixture_law.fit import Problem, refit
from llama_cpt.mixture_law.law import HeldOut
from llama_cpt.mixture_law.surface_model import CARRY, PRIOR, make_model

FEWEST = 3
"""Values of an axis before one of them is left out."""


def held_out(problem: Problem, theta: np.ndarray, everything: Problem) -> HeldOut:
    """Errors of the form where one ratio, one rate or the largest size is left out.

    ``problem`` has the runs that the form can be fitted to, ``everything`` all that score it.
    """
    at = everything.at
    by_ratio = _fold_errors(problem, theta, everything, problem.at.almr, at.almr)
    # One rate is one peak at every size: rates are told apart before any carry.
    by_rate = _fold_errors(problem, theta, everything, problem.at.rate, at.rate)
    errors = [e for e in (by_ratio, by_rate) if e is not None]
    size = _size_errors(problem, theta, everything)
    return HeldOut(
        ratio=_rms(by_ratio),
        learning_rate=_rms(by_rate),
        size=_rms(size),
        overall=_rms(np.concatenate(errors)) if errors else float("inf"),
    )


def _rms(errors: np.ndarray | None) -> float | None:
    return None if errors is None else float(np.sqrt(np.mean(errors**2)))


def _fold_errors(
    problem: Problem, theta: np.ndarray, everything: Problem, fitted: np.ndarray, scored: np.ndarray
) -> np.ndarray | None:
    """Errors of all runs, each predicted without those that share its value."""
    values = np.unique(np.round(scored, 9))
    if len(values) < FEWEST:
        return None
    weight = (np.round(fitted, 9) != values[:, None]).astype(float)
    thetas = refit(problem, np.tile(theta, (len(values), 1)), problem.y, weight, steps=25)
    predicted = everything.model.value(thetas, everything.at)
    left = np.round(scored, 9) == values[:, None]
    return (predicted - everything.y)[left]


def _size_errors(problem: Problem, theta: np.ndarray, everything: Problem) -> np.ndarray | None:
    largest = everything.at.size.max()
    smaller, left = problem.at.size < largest, everything.at.size == largest
    if not smaller.any() or smaller.sum() <= problem.model.free.sum():
        return None
    at = problem.at.where(smaller)
    model = make_model(problem.model.form, at, problem.model.smallest_share)
    start = theta.copy()
    start[-len(CARRY) :] = np.where(model.free, theta, 0)[-len(CARRY) :]
    fixed = ~model.free[-len(CARRY) :]
    start[-len(CARRY) :][fixed] = PRIOR[fixed]
    part = replace(problem, model=model, at=at, y=problem.y[smaller])
    found = refit(part, start[None], part.y, np.ones(len(part.y)), steps=25)[0]
    return (model.value(found, everything.at) - everything.y)[left]
