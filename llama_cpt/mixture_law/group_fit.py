"""Every form on one group's losses: fitted, scored, weighed."""

from dataclasses import replace

import numpy as np

from llama_cpt.mixture_law.bootstrap import bootstrap, is_identifiable, residual_scale
from llama_cpt.mixture_law.fit import Problem, fit
from llama_cpt.mixture_law.forms import Form, forms_of
from llama_cpt.mixture_law.law import FormFit
from llama_cpt.mixture_law.normalization import Normalization
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.selection import fold_count, held_out
from llama_cpt.mixture_law.surface import GroupSurface
from llama_cpt.mixture_law.surface_model import make_model

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
