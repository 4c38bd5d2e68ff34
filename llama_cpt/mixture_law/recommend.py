"""A recommendation from fitted surfaces, with the runs that would improve it most."""

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
"""Differences that matter: 0.05 of ALMR, and a tenth of a decade of the learning rate (in logs)."""


@dataclass(frozen=True)
class Target:
    """The model and budget to choose for; None for the largest ones of the table."""

    parameters: float | None
    tokens: float | None
    base: Mapping[str, float] | None


@dataclass(frozen=True)
class FoundOptima:
    """Optima at the reference, at every fitted size and every fitted budget, and their powers."""

    reference: OptimumAt
    sizes: list[OptimumAt]
    budgets: list[OptimumAt]
    by_size: Powers
    by_tokens: Powers


def recommend(
    law: Law, runs: RunsTable, target: Target, next_runs: int, deviates: np.ndarray
) -> tuple[Law, list[str]]:
    """Return the law with all results of its surface, and the reasons against a recommendation.

    ``deviates`` are the normal deviates behind the draws of the powers' prior.
    """
    surface, objective = law.surface, law.objective
    assert surface
    found = _find_optima(surface, runs, objective, deviates)
    at_target = _find_optimum_at_target(surface, objective, found)
    cells = runs.where(at_reference(runs))
    reasons = [
        *error_reasons(law.forms, law.noise, cells, objective),
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
        recommendation=_recommendation(law, found, at_target, cells),
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
    law: Law, found: FoundOptima, at_target: OptimumAt, cells: RunsTable
) -> Recommendation:
    """Return the recommendation at the target; ``cells`` are the runs at the reference."""
    surface = law.surface
    assert surface
    return Recommendation(
        almr=at_target.almr,
        learning_rate=at_target.learning_rate,
        losses=surface.predict(at_target.almr.value, at_target.learning_rate.value),
        base=surface.base(),
        parameters=surface.parameters,
        tokens=surface.tokens,
        poor_fit=poor_fit(law.forms, surface, found.reference, cells, law.objective),
        extrapolation=_extrapolation(surface),
    )


def _find_optima(
    surface: Surface, runs: RunsTable, objective: Objective, deviates: np.ndarray
) -> FoundOptima:
    normalization = surface.normalization
    parameters, budget = normalization.reference_parameters, normalization.reference_tokens
    same_size = runs.parameters == parameters
    domain = make_domain(runs.where(same_size), normalization)
    reference = find_optimum_at(surface, objective, domain, parameters, budget)
    sizes = []
    for size in np.unique(runs.parameters):
        # A size's own best rate may lie outside the reference's grid: both grids are searched.
        both = make_domain(runs.where(same_size | (runs.parameters == size)), normalization)
        optimum_at = find_optimum_at(surface, objective, both, float(size), budget)
        sizes.append(reference if size == parameters else optimum_at)
    budgets = [
        reference
        if tokens == budget
        else find_optimum_at(surface, objective, domain, parameters, float(tokens))
        for tokens in np.unique(runs.tokens[same_size])
    ]
    # The draws of the prior that the surfaces' draws also have; entry 0 is the prior's center.
    prior = PRIOR + PRIOR_WIDTH * np.concatenate([np.zeros((1, len(PRIOR))), deviates])
    log_sizes = np.log([optimum_at.parameters for optimum_at in sizes])
    log_tokens = np.log([optimum_at.tokens for optimum_at in budgets])
    return FoundOptima(
        reference=reference,
        sizes=sizes,
        budgets=budgets,
        # Columns 1 and 3 are the powers of the rate by size and by tokens (``POWERS``).
        by_size=make_powers(sizes, log_sizes, prior[:, 1]),
        by_tokens=make_powers(budgets, log_tokens, prior[:, 3]),
    )


def _find_optimum_at_target(
    surface: Surface, objective: Objective, found: FoundOptima
) -> OptimumAt:
    """Return the optimum at the target.

    The search covers the reference's domain, moved along the rate by the powers.
    """
    reference = found.reference
    if (surface.parameters, surface.tokens) == (reference.parameters, reference.tokens):
        return reference
    grown = np.log(surface.parameters / reference.parameters)
    longer = np.log(surface.tokens / reference.tokens)
    # Without the shift the optimum of a remote target would be outside the searched rates.
    shift = found.by_size.rate * grown + found.by_tokens.rate * longer
    optimum_at = find_optimum_at(
        surface, objective, reference.domain, surface.parameters, surface.tokens, shift
    )
    return widen(optimum_at, surface.parameters / surface.largest, surface.tokens / surface.longest)


def _without_unstated(law: Law) -> Law:
    """Replace by NaN what the table does not state and ``fill_unstated`` filled in for the fit."""
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
    size, budget = surface.parameters / surface.largest, surface.tokens / surface.longest
    factors = [f"{size:.0f} times the largest fitted size"] if size > FAR else []
    factors += [f"{budget:.0f} times the largest fitted budget"] if budget > FAR else []
    if not factors:
        return None
    factor = widening(np.log(size)) * widening(np.log(budget))
    return (
        f"Extrapolation: {' and '.join(factors)}; beyond {FAR:g} times, "
        f"intervals are widened by log10 of the factor, here {factor:.2f}."
    )


RATIO_STEP = 0.05
"""Distance of the candidate ratios."""
MIN_INSIDE = 0.9
"""No run outside the grid is proposed if this share of the draws has its optimum inside.

Forms are least reliable outside."""


def choose_next_runs(
    surface: Surface, domain: Domain, runs: RunsTable, optima: np.ndarray, count: int
) -> tuple[NextRun, ...]:
    """Return settings to measure at the reference size, chosen one after the other.

    ``optima`` (draws, 2) are in units of ``TOLERANCE``. With o the optimum and p the two log losses
    of a setting, over the bootstrap draws, and v the noise variance of a run, a run there leaves

        var(o) - cov(o, p) (cov(p) + v)^-1 cov(p, o)

    of the optimum's variance on average over outcomes, if the draws are Gaussian. The setting with
    the smallest trace is chosen, o and all p are conditioned on it, and the next one is sought.
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
    # Rows of each candidate's two losses; the first two rows are the optimum's.
    rows = 2 + np.arange(len(almr))[:, None] + len(almr) * np.arange(len(GROUPS))
    variance, free, chosen = float(np.trace(covariance[:2, :2])), np.ones(len(almr), bool), []
    for _ in range(min(count, len(almr))):
        measured = covariance[rows[:, :, None], rows[:, None, :]] + noise
        shared = covariance[rows, :2]
        # The trace of cov(o, p) (cov(p) + v)^-1 cov(p, o) for every candidate at once.
        reduction = np.einsum("cgo,cgo->c", shared, np.linalg.solve(measured, shared))
        best = int(np.argmax(np.where(free, reduction, -1.0)))
        # Condition everything on the chosen run: the Schur complement of its two losses.
        across = covariance[:, rows[best]]
        covariance = covariance - across @ np.linalg.solve(measured[best], across.T)
        free[best] = False
        remaining = float(np.trace(covariance[:2, :2])) / variance
        chosen.append(NextRun(float(almr[best]), float(learning_rate[best]), remaining))
    return tuple(chosen)


def search_domain(domain: Domain, optima: np.ndarray) -> Domain:
    """Return the grid if nearly all optima are inside, otherwise the domain.

    ``optima`` is (draws, 2): ALMR and log rate.
    """
    ends = np.array([domain.measured_almr, domain.measured_rate])
    inside = np.all((optima > ends[:, 0]) & (optima < ends[:, 1]), axis=1)
    return domain.within_grid() if inside.mean() >= MIN_INSIDE else domain


def _candidates(domain: Domain, runs: RunsTable, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Return unmeasured ratios in steps of 0.05, with rates in halves of the grid's steps."""
    low, high = domain.almr[0], domain.almr[-1]
    ratios = RATIO_STEP * np.arange(np.ceil(low / RATIO_STEP - 1e-9), high / RATIO_STEP + 1e-9)
    reference = surface.normalization.of(runs.where(at_reference(runs)))
    measured = np.unique(np.round(reference.rate, 9))
    middles = (measured[1:] + measured[:-1]) / 2
    rates = np.unique(np.round([*measured, *middles, domain.rate[0], domain.rate[-1]], 9))
    almr, rate = (values.ravel() for values in np.meshgrid(np.round(ratios, 9), rates))
    # A candidate is new if it differs from every run in the ratio or in the rate.
    off_ratio = np.abs(almr[:, None] - reference.almr) > 1e-6
    off_rate = np.abs(rate[:, None] - reference.rate) > 1e-6
    unmeasured = np.all(off_ratio | off_rate, axis=1)
    return almr[unmeasured], rate[unmeasured]
