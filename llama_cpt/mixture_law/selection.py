"""Which form predicts runs that it has not seen."""

from dataclasses import replace

import numpy as np

from llama_cpt.mixture_law.fit import Problem, refit
from llama_cpt.mixture_law.law import HeldOut
from llama_cpt.mixture_law.normalization import Settings
from llama_cpt.mixture_law.surface_model import CARRY, PRIOR, make_model

FEWEST = 3
"""Values of an axis before one of them is left out."""


def held_out(problem: Problem, theta: np.ndarray, everything: Problem) -> HeldOut:
    """Errors of the form where one ratio, one rate, one run or the largest size is left out.

    ``problem`` has the runs that the form can be fitted to, ``everything`` all that score it. A
    recommendation lies inside the grid, so forms are compared by what they say there: the outermost
    ratio and rate are predicted from one side, which asks how stiff a form is, and only reported.
    """
    folds = fold_count(everything.at)
    by_run = _run_errors(problem, theta, everything)
    ratio = _fold_errors(problem, theta, everything, problem.at.almr, everything.at.almr)
    rate = _fold_errors(problem, theta, everything, problem.at.rate, everything.at.rate)
    inner = [errors for fold in (ratio, rate) for errors in fold[1:-1]]
    inside = _rms(np.concatenate([by_run, *inner]))
    size = _size_errors(problem, theta, everything)
    logs = folds * np.log(inside) + (np.log(_rms(size)) if size is not None else 0.0)
    return HeldOut(
        ratio=_rms(np.concatenate(ratio)) if ratio else None,
        learning_rate=_rms(np.concatenate(rate)) if rate else None,
        run=_rms(by_run),
        size=_rms(size) if size is not None else None,
        inside=inside,
        overall=float(np.exp(logs / (folds + (size is not None)))),
    )


def fold_count(at: Settings) -> int:
    """Ratios and rates: runs of one of them err together, so they count as one."""
    return len(_values(at.almr)) + len(_values(at.rate))


def _values(axis: np.ndarray) -> np.ndarray:
    return np.unique(np.round(axis, 9))


def _rms(errors: np.ndarray) -> float:
    # A form that hits noiseless losses exactly still has a logarithm.
    return float(np.sqrt(np.mean(errors**2)) + 1e-12)


def _run_errors(problem: Problem, theta: np.ndarray, everything: Problem) -> np.ndarray:
    """Errors of all runs, each predicted without itself."""
    fitted = problem.model.fits(everything.at)
    places = np.flatnonzero(fitted)
    weight = 1 - np.eye(len(places))
    thetas = refit(problem, np.tile(theta, (len(places), 1)), problem.y, weight, steps=15)
    errors = everything.model.value(theta, everything.at) - everything.y
    own = everything.model.value(thetas, everything.at)[np.arange(len(places)), places]
    errors[places] = own - everything.y[places]
    return errors


def _fold_errors(
    problem: Problem, theta: np.ndarray, everything: Problem, fitted: np.ndarray, scored: np.ndarray
) -> list[np.ndarray]:
    """Errors of each value's runs, predicted without them; of none where the values are few."""
    values = _values(scored)
    if len(values) < FEWEST:
        return []
    weight = (np.round(fitted, 9) != values[:, None]).astype(float)
    thetas = refit(problem, np.tile(theta, (len(values), 1)), problem.y, weight, steps=25)
    errors = everything.model.value(thetas, everything.at) - everything.y
    left = np.round(scored, 9) == values[:, None]
    return [error[out] for error, out in zip(errors, left, strict=True)]


def _size_errors(problem: Problem, theta: np.ndarray, everything: Problem) -> np.ndarray | None:
    largest = everything.at.size.max()
    smaller, left = problem.at.size < largest, everything.at.size == largest
    if smaller.sum() <= len(problem.model.form.bounds):
        return None
    at = problem.at.where(smaller)
    model = make_model(problem.model.form, at, problem.model.smallest_share)
    start = theta.copy()
    start[-len(CARRY) :] = np.where(model.free[-len(CARRY) :], theta[-len(CARRY) :], PRIOR)
    part = replace(problem, model=model, at=at, y=problem.y[smaller])
    found = refit(part, start[None], part.y, np.ones(len(part.y)), steps=25)[0]
    return (model.value(found, everything.at) - everything.y)[left]
