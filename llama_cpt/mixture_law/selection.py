"""Which form predicts runs that it has not seen."""

from dataclasses import replace

import numpy as np

from llama_cpt.mixture_law.fit import (
    Problem,
    bootstrap,
    fit,
    is_identifiable,
    refit,
    residual_scale,
)
from llama_cpt.mixture_law.forms import Form, forms_of
from llama_cpt.mixture_law.law import FormFit, HeldOut
from llama_cpt.mixture_law.normalization import Normalization, Settings
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.surface import CARRY, PRIOR, GroupSurface, make_model

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


LIGHTEST = 0.05
"""Forms of less weight have no draws."""


def fit_group(
    points: RunsTable, frame: Normalization, group: str, carry: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[FormFit, ...], GroupSurface | None]:
    """All forms, the one with the least held-out error marked; and its surface, if there is one.

    ``carry`` are draws of the powers from their prior, for those that the data does not carry.
    """
    fitted = [_fit_form(form, points, frame) for form in forms_of(group)]
    found = [(problem, theta, record) for problem, theta, record in fitted if theta is not None]
    if not found:
        return tuple(record for _, _, record in fitted), None
    errors = np.array([record.held_out.overall for _, _, record in found])
    weights = _weights(errors, fold_count(frame.of(points)))
    best = int(np.argmax(weights))
    rows = np.split(
        rng.permutation(len(carry)), np.rint(np.cumsum(weights) * len(carry)).astype(int)[:-1]
    )
    draws = tuple(
        (problem.model, bootstrap(problem, theta, carry[row], rng), row)
        for (problem, theta, _), row in zip(found, rows, strict=True)
        if len(row)
    )
    problem, theta, record = found[best]
    assert record.held_out
    sizes = np.unique(points.parameters)
    missed = (record.held_out.size or 0.0) / np.log(sizes[-1] / sizes[-2]) if sizes[1:].size else 0
    surface = GroupSurface(problem.model, theta, draws, record.held_out.inside, float(missed))
    weight = {r.form: float(w) for (_, _, r), w in zip(found, weights, strict=True)}
    records = (
        replace(r, weight=weight.get(r.form, 0.0), chosen=r.form == record.form)
        for _, _, r in fitted
    )
    return tuple(records), surface


def _fit_form(
    form: Form, points: RunsTable, frame: Normalization
) -> tuple[Problem, np.ndarray | None, FormFit]:
    at = frame.of(points)
    y = np.log(getattr(points, form.group) / frame.base(frame.reference_parameters)[form.group])
    model = make_model(form, at, frame.smallest_share[form.group])
    inside = model.fits(at)
    problem = Problem(model, at.where(inside), y[inside])
    record = FormFit(
        form=form.name,
        source=form.source,
        group=form.group,
        parameters={},
        residual=None,
        held_out=None,
        runs=int(inside.sum()),
        left_out=int((~inside).sum()),
        weight=0.0,
        chosen=False,
        refusal=None,
    )
    count = int(model.free.sum())
    if inside.sum() <= count:
        reason = f"{int(inside.sum())} runs do not carry its {count} parameters"
        return problem, None, replace(record, refusal=reason)
    theta = fit(problem)
    if not is_identifiable(problem, theta):
        reason = f"ratios and rates are too few to tell its {count} parameters from each other"
        return problem, None, replace(record, refusal=reason)
    scores = held_out(problem, theta, Problem(model, at, y))
    record = replace(
        record,
        parameters=dict(zip(model.names, theta.tolist(), strict=True)),
        residual=residual_scale(problem, theta),
        held_out=scores,
    )
    return problem, theta, record


def _weights(errors: np.ndarray, folds: int) -> np.ndarray:
    """Likelihood of Gaussian held-out errors, each form of its own spread: (best / error)^folds."""
    weights = (errors.min() / errors) ** folds
    weights = np.where(weights < LIGHTEST, 0.0, weights)
    return weights / weights.sum()
