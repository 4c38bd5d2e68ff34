"""Selection of the form of each group's surface, by its error on held-out runs."""

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
from llama_cpt.mixture_law.surface import POWERS, PRIOR, GroupSurface, make_model

MIN_VALUES = 3
"""Smallest number of values of an axis for which one is held out."""


def held_out(problem: Problem, theta: np.ndarray, all_runs: Problem) -> HeldOut:
    """Return the form's errors on held-out runs, ratios, rates and the largest size.

    ``problem`` has the runs that the form can be fitted to, ``all_runs`` those that score it. A
    recommendation lies inside the grid, so forms are compared by their errors there. The outermost
    ratio and rate are predicted from one side only, which mostly measures how stiff a form is:
    their errors are reported but do not count.
    """
    folds = fold_count(all_runs.at)
    by_run = _run_errors(problem, theta, all_runs)
    ratio = _fold_errors(problem, theta, all_runs, problem.at.almr, all_runs.at.almr)
    rate = _fold_errors(problem, theta, all_runs, problem.at.rate, all_runs.at.rate)
    inner = [errors for fold in (ratio, rate) for errors in fold[1:-1]]
    inside = _root_mean_square(np.concatenate([by_run, *inner]))
    size = _size_errors(problem, theta, all_runs)
    # A geometric mean in which the size counts as one more fold.
    logs = folds * np.log(inside) + (np.log(_root_mean_square(size)) if size is not None else 0.0)
    return HeldOut(
        ratio=_root_mean_square(np.concatenate(ratio)) if ratio else None,
        learning_rate=_root_mean_square(np.concatenate(rate)) if rate else None,
        run=_root_mean_square(by_run),
        size=_root_mean_square(size) if size is not None else None,
        inside=inside,
        overall=float(np.exp(logs / (folds + (size is not None)))),
    )


def fold_count(at: Settings) -> int:
    """Return the number of ratios and rates.

    Errors of runs with the same ratio or rate are correlated, so they count as one observation.
    """
    return len(_distinct(at.almr)) + len(_distinct(at.rate))


def _distinct(axis: np.ndarray) -> np.ndarray:
    # Rounding merges values that differ by floating-point errors only.
    return np.unique(np.round(axis, 9))


def _root_mean_square(errors: np.ndarray) -> float:
    # The offset keeps the logarithm finite for a form that reproduces noiseless losses exactly.
    return float(np.sqrt(np.mean(errors**2)) + 1e-12)


def _run_errors(problem: Problem, theta: np.ndarray, all_runs: Problem) -> np.ndarray:
    """Return the errors of all runs, each predicted by a fit without it."""
    fitted = problem.model.fits(all_runs.at)
    indices = np.flatnonzero(fitted)
    # Row i has weight 0 for run i: all leave-one-out fits are one batched refit.
    weight = 1 - np.eye(len(indices))
    thetas = refit(problem, np.tile(theta, (len(indices), 1)), problem.y, weight, steps=15)
    # Runs at which the form is singular were never fitted: the full fit predicts them.
    errors = all_runs.model.value(theta, all_runs.at) - all_runs.y
    own = all_runs.model.value(thetas, all_runs.at)[np.arange(len(indices)), indices]
    errors[indices] = own - all_runs.y[indices]
    return errors


def _fold_errors(
    problem: Problem, theta: np.ndarray, all_runs: Problem, fitted: np.ndarray, scored: np.ndarray
) -> list[np.ndarray]:
    """Return the errors of each value's runs, predicted by a fit without them.

    Empty if the axis has fewer than ``MIN_VALUES`` values.
    """
    values = _distinct(scored)
    if len(values) < MIN_VALUES:
        return []
    # Row i has weight 0 for all runs of value i.
    weight = (np.round(fitted, 9) != values[:, None]).astype(float)
    thetas = refit(problem, np.tile(theta, (len(values), 1)), problem.y, weight, steps=25)
    errors = all_runs.model.value(thetas, all_runs.at) - all_runs.y
    left = np.round(scored, 9) == values[:, None]
    return [error[out] for error, out in zip(errors, left, strict=True)]


def _size_errors(problem: Problem, theta: np.ndarray, all_runs: Problem) -> np.ndarray | None:
    """Return the errors of the largest size, predicted from smaller ones; None if too few."""
    largest = all_runs.at.size.max()
    smaller, left = problem.at.size < largest, all_runs.at.size == largest
    # The smaller sizes must at least determine the form's own parameters.
    if smaller.sum() <= len(problem.model.form.bounds):
        return None
    at = problem.at.where(smaller)
    model = make_model(problem.model.form, at, problem.model.smallest_share)
    start = theta.copy()
    # If one size remains, its powers are not determined and return to their prior.
    start[-len(POWERS) :] = np.where(model.free[-len(POWERS) :], theta[-len(POWERS) :], PRIOR)
    part = replace(problem, model=model, at=at, y=problem.y[smaller])
    found = refit(part, start[None], part.y, np.ones(len(part.y)), steps=25)[0]
    return (model.value(found, all_runs.at) - all_runs.y)[left]


MIN_WEIGHT = 0.05
"""Forms with less weight get no bootstrap draws."""


def fit_group(
    runs: RunsTable,
    normalization: Normalization,
    group: str,
    prior_powers: np.ndarray,
    rng: np.random.Generator,
) -> tuple[tuple[FormFit, ...], GroupSurface | None]:
    """Return the fits of all forms to one group, and the surface of the best one, if there is one.

    ``prior_powers`` are draws of the powers from their prior, for those that the data does not
    determine.
    """
    fitted = [_fit_form(form, runs, normalization) for form in forms_of(group)]
    found = [(problem, theta, record) for problem, theta, record in fitted if theta is not None]
    if not found:
        return tuple(record for _, _, record in fitted), None
    errors = np.array([record.held_out.overall for _, _, record in found])
    weights = _weights(errors, fold_count(normalization.of(runs)))
    best = int(np.argmax(weights))
    # Each form gets its share of the draws, in random order: no form keeps the first ones.
    count = len(prior_powers)
    ends = np.rint(np.cumsum(weights) * count).astype(int)[:-1]
    rows = np.split(rng.permutation(count), ends)
    # Draws come from all plausible forms, so intervals include the uncertainty about the form.
    draws = tuple(
        (problem.model, bootstrap(problem, theta, prior_powers[row], rng), row)
        for (problem, theta, _), row in zip(found, rows, strict=True)
        if len(row)
    )
    problem, theta, record = found[best]
    assert record.held_out
    surface = GroupSurface(
        problem.model, theta, draws, record.held_out.inside, _size_error(record.held_out, runs)
    )
    weight = {r.form: float(w) for (_, _, r), w in zip(found, weights, strict=True)}
    records = (
        replace(r, weight=weight.get(r.form, 0.0), chosen=r.form == record.form)
        for _, _, r in fitted
    )
    return tuple(records), surface


def _size_error(held_out: HeldOut, runs: RunsTable) -> float:
    """Return the largest size's held-out error per unit of log size; 0 for one size."""
    sizes = np.unique(runs.parameters)
    if len(sizes) < 2:
        return 0.0
    return float((held_out.size or 0.0) / np.log(sizes[-1] / sizes[-2]))


def _fit_form(
    form: Form, runs: RunsTable, normalization: Normalization
) -> tuple[Problem, np.ndarray | None, FormFit]:
    """Return the problem, the parameters (None without a fit) and the record of a form."""
    at = normalization.of(runs)
    base = normalization.base(normalization.reference_parameters)[form.group]
    y = np.log(getattr(runs, form.group) / base)
    model = make_model(form, at, normalization.smallest_share[form.group])
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
    # Residuals need at least one degree of freedom.
    if inside.sum() <= count:
        reason = f"{int(inside.sum())} runs do not determine its {count} parameters"
        return problem, None, replace(record, refusal=reason)
    theta = fit(problem)
    if not is_identifiable(problem, theta):
        reason = f"too few ratios and rates to identify its {count} parameters"
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
    """Return the weights of the forms, (smallest error / error)^folds, normalized.

    This is the likelihood of Gaussian held-out errors with a variance of its own for each form.
    """
    weights = (errors.min() / errors) ** folds
    # A form with few draws would only add outliers to the intervals.
    weights = np.where(weights < MIN_WEIGHT, 0.0, weights)
    return weights / weights.sum()
