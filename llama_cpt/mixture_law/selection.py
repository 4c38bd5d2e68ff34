"""Selection of the form of each group's loss surface by cross-validation."""

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
"""Minimum number of distinct ratios or distinct learning rates for holding them out in turn."""


def held_out(problem: Problem, theta: np.ndarray, all_runs: Problem) -> HeldOut:
    """Return the cross-validation errors of a form with fitted parameters ``theta``.

    The folds are each run, each ratio, each learning rate, and the largest model size. Fits use the
    runs in ``problem``, at which the form is defined; errors are computed for the runs in
    ``all_runs``, which contains every run. The score ``overall`` excludes the outermost ratios and
    learning rates, because predictions for them are extrapolations and a recommendation lies inside
    the grid.
    """
    folds = fold_count(all_runs.at)
    by_run = _run_errors(problem, theta, all_runs)
    ratio = _fold_errors(problem, theta, all_runs, problem.at.almr, all_runs.at.almr)
    rate = _fold_errors(problem, theta, all_runs, problem.at.rate, all_runs.at.rate)
    inner = [errors for fold in (ratio, rate) for errors in fold[1:-1]]
    inside = _root_mean_square(np.concatenate([by_run, *inner]))
    size = _size_errors(problem, theta, all_runs)
    # A weighted geometric mean: the largest size has the weight of one fold.
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
    """Return the number of distinct ratios plus the number of distinct learning rates.

    This number approximates the number of independent errors, because the errors of runs with the
    same ratio or learning rate are correlated.
    """
    return len(_distinct(at.almr)) + len(_distinct(at.rate))


def _distinct(axis: np.ndarray) -> np.ndarray:
    """Return the sorted distinct values of a coordinate."""
    # Rounding merges values that differ only by floating-point errors.
    return np.unique(np.round(axis, 9))


def _root_mean_square(errors: np.ndarray) -> float:
    """Return the root mean square of the errors plus 1e-12."""
    # The offset keeps the logarithm finite for a form that reproduces noiseless losses exactly.
    return float(np.sqrt(np.mean(errors**2)) + 1e-12)


def _run_errors(problem: Problem, theta: np.ndarray, all_runs: Problem) -> np.ndarray:
    """Return the leave-one-out error of every run."""
    fitted = problem.model.fits(all_runs.at)
    indices = np.flatnonzero(fitted)
    # Fit i has weight 0 for run i, so all leave-one-out fits are one batched refit.
    weight = 1 - np.eye(len(indices))
    thetas = refit(problem, np.tile(theta, (len(indices), 1)), problem.y, weight, steps=15)
    # Runs at which the form is singular are not fitted, so the full fit predicts them.
    errors = all_runs.model.value(theta, all_runs.at) - all_runs.y
    own = all_runs.model.value(thetas, all_runs.at)[np.arange(len(indices)), indices]
    errors[indices] = own - all_runs.y[indices]
    return errors


def _fold_errors(
    problem: Problem, theta: np.ndarray, all_runs: Problem, fitted: np.ndarray, scored: np.ndarray
) -> list[np.ndarray]:
    """Return one array per distinct value of a coordinate: the errors of the runs with that value.

    The errors are those of a fit to the runs with all other values. ``fitted`` and ``scored`` are
    the coordinate in ``problem`` and in ``all_runs``. The result is empty if the coordinate has
    fewer than ``MIN_VALUES`` values.
    """
    values = _distinct(scored)
    if len(values) < MIN_VALUES:
        return []
    # Fit i has weight 0 for all runs with value i.
    weight = (np.round(fitted, 9) != values[:, None]).astype(float)
    thetas = refit(problem, np.tile(theta, (len(values), 1)), problem.y, weight, steps=25)
    errors = all_runs.model.value(thetas, all_runs.at) - all_runs.y
    left = np.round(scored, 9) == values[:, None]
    return [error[out] for error, out in zip(errors, left, strict=True)]


def _size_errors(problem: Problem, theta: np.ndarray, all_runs: Problem) -> np.ndarray | None:
    """Return the errors for the largest model size, predicted by a fit to all smaller sizes.

    The result is None unless the smaller sizes have more runs than the form has parameters.
    """
    largest = all_runs.at.size.max()
    smaller, left = problem.at.size < largest, all_runs.at.size == largest
    if smaller.sum() <= len(problem.model.form.bounds):
        return None
    at = problem.at.where(smaller)
    model = make_model(problem.model.form, at, problem.model.smallest_share)
    start = theta.copy()
    # Exponents that the remaining sizes do not determine are reset to their prior.
    start[-len(POWERS) :] = np.where(model.free[-len(POWERS) :], theta[-len(POWERS) :], PRIOR)
    part = replace(problem, model=model, at=at, y=problem.y[smaller])
    found = refit(part, start[None], part.y, np.ones(len(part.y)), steps=25)[0]
    return (model.value(found, all_runs.at) - all_runs.y)[left]


MIN_WEIGHT = 0.05
"""Smallest weight, relative to the largest weight, for which a form has bootstrap draws."""


def fit_group(
    runs: RunsTable,
    normalization: Normalization,
    group: str,
    prior_powers: np.ndarray,
    rng: np.random.Generator,
) -> tuple[tuple[FormFit, ...], GroupSurface | None]:
    """Return the fits of all forms to one group, and the group's surface.

    The surface uses the form with the smallest cross-validation error. The surface is None if no
    form could be fitted. ``prior_powers``, (draws, powers), contains draws from the prior of
    ``POWERS``. These draws replace the exponents that the data does not determine.
    """
    fitted = [_fit_form(form, runs, normalization) for form in forms_of(group)]
    found = [(problem, theta, record) for problem, theta, record in fitted if theta is not None]
    if not found:
        return tuple(record for _, _, record in fitted), None
    errors = np.array([record.held_out.overall for _, _, record in found if record.held_out])
    weights = _weights(errors, fold_count(normalization.of(runs)))
    best = int(np.argmax(weights))
    # The number of draws of a form is proportional to its weight. Their indices are random, so that
    # draws of the two groups are paired independently of the form.
    count = len(prior_powers)
    ends = np.rint(np.cumsum(weights) * count).astype(int)[:-1]
    rows = np.split(rng.permutation(count), ends)
    # Draws come from all forms with a weight, so intervals include the uncertainty about the form.
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
    """Return the held-out error for the largest size per unit of log(size).

    The result is 0 if the table has only one size.
    """
    sizes = np.unique(runs.parameters)
    if len(sizes) < 2:
        return 0.0
    return float((held_out.size or 0.0) / np.log(sizes[-1] / sizes[-2]))


def _fit_form(
    form: Form, runs: RunsTable, normalization: Normalization
) -> tuple[Problem, np.ndarray | None, FormFit]:
    """Return the regression problem, the fitted parameters and the ``FormFit`` of one form.

    If the form cannot be fitted, the parameters are None and the ``FormFit`` contains the reason.
    """
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
        reason = (
            f"its {count} parameters are not identifiable with so few ratios and learning rates"
        )
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
    """Return the weights of the forms: (smallest error / error)^folds, normalized to a sum of 1.

    A weight is the relative likelihood of the form's held-out errors, if the errors are Gaussian
    with a separate variance for each form. Weights below ``MIN_WEIGHT`` become 0.
    """
    weights = (errors.min() / errors) ** folds
    # A form with a small weight would have few draws, which would only be outliers.
    weights = np.where(weights < MIN_WEIGHT, 0.0, weights)
    return weights / weights.sum()
