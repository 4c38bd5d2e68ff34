"""The recommendation from fitted loss surfaces, and the proposed next runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from llama_cpt.mixture_law.extrapolation import Powers, extrapolate, make_powers, widen
from llama_cpt.mixture_law.law import Law, NextRun, Recommendation
from llama_cpt.mixture_law.normalization import at_reference
from llama_cpt.mixture_law.objective import Objective
from llama_cpt.mixture_law.optimum import (
    Domain,
    OptimumAt,
    find_optimum_at,
    fit_optimal_rate,
    make_domain,
    predicted_front,
)
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.surface import FAR, PRIOR, PRIOR_WIDTH, Surface, widening
from llama_cpt.mixture_law.table import GROUPS
from llama_cpt.mixture_law.validity_checks import (
    bound_reasons,
    edge_reasons,
    error_reasons,
    extrapolation_reasons,
    poor_fit,
    spread_reasons,
    target_reasons,
)

TOLERANCE = np.array([0.05, 0.1 * np.log(10)])
"""Scales by which ALMR and the log learning rate are divided before their variances are added.

The scales are 0.05 for ALMR and a tenth of a decade, in natural logarithms, for the rate.
"""


@dataclass(frozen=True)
class Target:
    """The model size and token budget for which to recommend a ratio and a learning rate."""

    parameters: float | None
    """Number of parameters; None for the largest size in the table."""
    tokens: float | None
    """Number of tokens; None for the largest budget of the largest size."""
    base: Mapping[str, float] | None
    """Losses by language group of the target's base model; None if they are unknown."""


@dataclass(frozen=True)
class FoundOptima:
    """The optima at the fitted model sizes and token budgets, and their scaling exponents."""

    reference: OptimumAt
    """Optimum at the reference size and budget."""
    sizes: list[OptimumAt]
    """Optimum at each fitted size and the reference budget, in ascending order of size."""
    budgets: list[OptimumAt]
    """Optimum at each fitted budget and the reference size, in ascending order of budget."""
    by_size: Powers
    by_tokens: Powers


def recommend(
    law: Law, runs: RunsTable, target: Target, next_runs: int, deviates: np.ndarray
) -> tuple[Law, list[str]]:
    """Return the law with all results from its loss surfaces, and the reasons for a refusal.

    The list of reasons is empty if all validity checks pass. ``next_runs`` is the number of
    proposed runs. ``deviates``, (draws, powers), contains the standard normal deviates from which
    draws of ``POWERS`` from the prior are computed.
    """
    surface, objective = law.surface, law.objective
    assert surface
    found = _find_optima(surface, runs, objective, deviates)
    at_target = _find_optimum_at_target(surface, objective, found)
    reference_runs = runs.where(at_reference(runs))
    reasons = [
        *error_reasons(law.forms, law.noise, reference_runs, objective),
        *edge_reasons(found.reference),
        *spread_reasons(found.reference),
        *(extrapolation_reasons(at_target) if at_target is not found.reference else ()),
        *bound_reasons(surface, at_target, found.sizes[-1], objective),
        *target_reasons(target.parameters, float(runs.parameters.min())),
    ]
    optima = np.stack([found.reference.optima.almr, found.reference.optima.rate], axis=1)[1:]
    domain = search_domain(found.reference.domain, optima)
    law = replace(
        law,
        recommendation=_recommendation(law, found, at_target, reference_runs),
        optimal_rate=fit_optimal_rate(found.reference),
        predicted_front=predicted_front(surface, found.reference),
        extrapolation=extrapolate(
            optima=found.sizes,
            sizes=found.by_size,
            tokens=found.by_tokens,
            target=at_target if target.parameters or target.tokens else None,
            factor=surface.parameters / surface.largest,
        ),
        next_runs=choose_next_runs(surface, domain, runs, optima / TOLERANCE, next_runs),
    )
    return _without_unstated(law), reasons


def _recommendation(
    law: Law, found: FoundOptima, at_target: OptimumAt, reference_runs: RunsTable
) -> Recommendation:
    """Return the recommendation for the target.

    ``reference_runs`` are the runs at the reference size and budget.
    """
    surface = law.surface
    assert surface
    return Recommendation(
        almr=at_target.almr,
        learning_rate=at_target.learning_rate,
        losses=surface.predict(at_target.almr.value, at_target.learning_rate.value),
        base=surface.base(),
        parameters=surface.parameters,
        tokens=surface.tokens,
        poor_fit=poor_fit(law.forms, surface, found.reference, reference_runs, law.objective),
        extrapolation=_extrapolation(surface),
    )


def _find_optima(
    surface: Surface, runs: RunsTable, objective: Objective, deviates: np.ndarray
) -> FoundOptima:
    """Return the optima at all fitted model sizes and token budgets."""
    normalization = surface.normalization
    parameters, budget = normalization.reference_parameters, normalization.reference_tokens
    same_size = runs.parameters == parameters
    domain = make_domain(runs.where(same_size), normalization)
    reference = find_optimum_at(surface, objective, domain, parameters, budget)
    sizes = []
    for size in np.unique(runs.parameters):
        # The optimal rate of a size can lie outside the grid of the reference size, so the domain
        # spans the grids of both.
        both = make_domain(runs.where(same_size | (runs.parameters == size)), normalization)
        optimum_at = find_optimum_at(surface, objective, both, float(size), budget)
        sizes.append(reference if size == parameters else optimum_at)
    budgets = [
        reference
        if tokens == budget
        else find_optimum_at(surface, objective, domain, parameters, float(tokens))
        for tokens in np.unique(runs.tokens[same_size])
    ]
    # Entry 0 is the prior mean; the other entries are the prior draws that the surfaces use.
    prior = PRIOR + PRIOR_WIDTH * np.concatenate([np.zeros((1, len(PRIOR))), deviates])
    log_sizes = np.log([optimum_at.parameters for optimum_at in sizes])
    log_tokens = np.log([optimum_at.tokens for optimum_at in budgets])
    return FoundOptima(
        reference=reference,
        sizes=sizes,
        budgets=budgets,
        # Columns 1 and 3 belong to the exponents ``rate_by_size`` and ``rate_by_tokens``.
        by_size=make_powers(sizes, log_sizes, prior[:, 1]),
        by_tokens=make_powers(budgets, log_tokens, prior[:, 3]),
    )


def _find_optimum_at_target(
    surface: Surface, objective: Objective, found: FoundOptima
) -> OptimumAt:
    """Return the optimum at the target, with widened intervals for an extrapolation.

    The search covers the learning rates of the reference domain, shifted as the power laws of the
    optimal rate predict for the target.
    """
    reference = found.reference
    if (surface.parameters, surface.tokens) == (reference.parameters, reference.tokens):
        return reference
    grown = np.log(surface.parameters / reference.parameters)
    longer = np.log(surface.tokens / reference.tokens)
    # Without the shift, the optimum of a distant target would lie outside the searched rates.
    shift = found.by_size.rate * grown + found.by_tokens.rate * longer
    optimum_at = find_optimum_at(
        surface, objective, reference.domain, surface.parameters, surface.tokens, shift
    )
    return widen(optimum_at, surface.parameters / surface.largest, surface.tokens / surface.longest)


def _without_unstated(law: Law) -> Law:
    """Return the law with NaN in place of values that the table does not state.

    ``fill_unstated`` replaced these values by numbers for the fit.
    """
    recommendation, runs = law.recommendation, law.runs
    assert recommendation
    unknown = {}
    if not np.isfinite(runs.parameters).any():
        unknown["parameters"] = float("nan")
    if not np.isfinite(runs.tokens).any():
        unknown["tokens"] = float("nan")
    bases = {"additional": runs.base_additional, "original": runs.base_original}
    base = {
        group: recommendation.base[group] if np.isfinite(values).any() else float("nan")
        for group, values in bases.items()
    }
    return replace(law, recommendation=replace(recommendation, base=base, **unknown))


def _extrapolation(surface: Surface) -> str | None:
    """Return the value of ``Recommendation.extrapolation``."""
    size, budget = surface.parameters / surface.largest, surface.tokens / surface.longest
    factors = [f"{size:.0f} times the largest fitted size"] if size > FAR else []
    factors += [f"{budget:.0f} times the largest fitted budget"] if budget > FAR else []
    if not factors:
        return None
    factor = widening(np.log(size)) * widening(np.log(budget))
    return (
        f"Extrapolation: the target has {' and '.join(factors)}. Above {FAR:g} times, intervals "
        f"are widened by log10 of that number, here by the factor {factor:.2f}."
    )


RATIO_STEP = 0.05
"""Spacing of the candidate ratios."""
MIN_INSIDE = 0.9
"""Runs outside the grid are proposed only if less than this share of the optima is inside.

The forms are least reliable outside the grid.
"""


def choose_next_runs(
    surface: Surface, domain: Domain, runs: RunsTable, optima: np.ndarray, count: int
) -> tuple[NextRun, ...]:
    """Return up to ``count`` runs that would reduce the variance of the optimum most.

    This is a greedy Bayesian experimental design at the reference size and budget. Let o be the
    optimum in units of ``TOLERANCE``, p the two log losses of a candidate setting, and v the noise
    variance of a run. The bootstrap draws are samples of o and p. If o and p are jointly Gaussian,
    the covariance of o after the run is

        cov(o) - cov(o, p) (cov(p) + v)^-1 cov(p, o)

    for every outcome of the run. The candidate for which the trace of this matrix is smallest is
    selected, all covariances are conditioned on it, and the search is repeated. ``optima``, of
    shape (draws, 2), contains o of each draw.
    """
    normalization = surface.normalization
    almr, rate = _candidates(domain, runs, surface)
    learning_rate = np.exp(rate + normalization.middle_rate)
    at = normalization.settings(
        almr, learning_rate, normalization.reference_parameters, normalization.reference_tokens
    )
    losses = np.concatenate([surface.groups[group].spread(at) for group in GROUPS], axis=1)
    covariance = np.cov(np.concatenate([optima, losses], axis=1), rowvar=False)
    noise = np.diag([surface.groups[group].noise ** 2 for group in GROUPS])
    # Row i contains the indices of candidate i's two losses in ``covariance``; indices 0 and 1 are
    # the optimum.
    rows = 2 + np.arange(len(almr))[:, None] + len(almr) * np.arange(len(GROUPS))
    variance, free, chosen = float(np.trace(covariance[:2, :2])), np.ones(len(almr), bool), []
    for _ in range(min(count, len(almr))):
        observed = covariance[rows[:, :, None], rows[:, None, :]] + noise
        shared = covariance[rows, :2]
        # The trace of cov(o, p) (cov(p) + v)^-1 cov(p, o) for every candidate at once.
        reduction = np.einsum("cgo,cgo->c", shared, np.linalg.solve(observed, shared))
        best = int(np.argmax(np.where(free, reduction, -1.0)))
        # Condition on the selected run: the Schur complement with respect to its two losses.
        across = covariance[:, rows[best]]
        covariance = covariance - across @ np.linalg.solve(observed[best], across.T)
        free[best] = False
        remaining = float(np.trace(covariance[:2, :2])) / variance
        chosen.append(NextRun(float(almr[best]), float(learning_rate[best]), remaining))
    return tuple(chosen)


def search_domain(domain: Domain, optima: np.ndarray) -> Domain:
    """Return the domain without its margin if at least ``MIN_INSIDE`` of the optima are inside.

    Otherwise, return the domain itself. ``optima``, (draws, 2), contains ALMR and log rate.
    """
    ends = np.array([domain.grid_almr, domain.grid_rate])
    inside = np.all((optima > ends[:, 0]) & (optima < ends[:, 1]), axis=1)
    return domain.within_grid() if inside.mean() >= MIN_INSIDE else domain


def _candidates(domain: Domain, runs: RunsTable, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Return the ALMR and the log learning rate of the candidate runs.

    Ratios are multiples of ``RATIO_STEP``. Rates are the rates of the reference runs, the midpoints
    between these rates, and the ends of the domain. Settings of existing runs are excluded.
    """
    low, high = domain.almr[0], domain.almr[-1]
    ratios = RATIO_STEP * np.arange(np.ceil(low / RATIO_STEP - 1e-9), high / RATIO_STEP + 1e-9)
    reference = surface.normalization.of(runs.where(at_reference(runs)))
    existing = np.unique(np.round(reference.rate, 9))
    midpoints = (existing[1:] + existing[:-1]) / 2
    rates = np.unique(np.round([*existing, *midpoints, domain.rate[0], domain.rate[-1]], 9))
    almr, rate = (values.ravel() for values in np.meshgrid(np.round(ratios, 9), rates))
    # A candidate is new if its ratio or its rate differs from that of every run.
    off_ratio = np.abs(almr[:, None] - reference.almr) > 1e-6
    off_rate = np.abs(rate[:, None] - reference.rate) > 1e-6
    new = np.all(off_ratio | off_rate, axis=1)
    return almr[new], rate[new]
