"""From a fitted surface to a recommendation, and the reasons that stand against it."""

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
    carried_reasons,
    edge_reasons,
    error_reasons,
    poor_fit,
    spread_reasons,
    target_reasons,
)

TOLERANCE = np.array([0.05, 0.1 * np.log(10)])
"""What counts as a difference: ALMR, and a tenth of a decade of the rate."""


@dataclass(frozen=True)
class Target:
    """What the choice is for; None where it is what was measured."""

    parameters: float | None
    tokens: float | None
    base: Mapping[str, float] | None


@dataclass(frozen=True)
class FoundOptima:
    """Home, every fitted size, every fitted budget, and what they say of sizes and budgets."""

    home: OptimumAt
    sizes: list[OptimumAt]
    budgets: list[OptimumAt]
    by_size: Powers
    by_tokens: Powers


def recommend(
    law: Law, points: RunsTable, target: Target, next_runs: int, chance: np.ndarray
) -> tuple[Law, list[str]]:
    """The law with all that its surface says, and why it should not be recommended.

    ``chance`` are the normal deviates behind the draws of the powers' prior.
    """
    surface, goal = law.surface, law.objective
    assert surface
    found = _find_optima(surface, points, goal, chance)
    factor = surface.parameters / surface.largest
    aimed = _aimed(surface, goal, found)
    cells = points.where(at_reference(points))
    reasons = [
        *error_reasons(law.forms, law.noise, cells, goal),
        *edge_reasons(found.home),
        *spread_reasons(found.home),
        *(carried_reasons(aimed) if aimed is not found.home else ()),
        *bound_reasons(surface, aimed, found.sizes[-1], goal),
        *target_reasons(target.parameters, float(points.parameters.min())),
    ]
    optima = np.stack([found.home.optima.almr, found.home.optima.rate], axis=1)[1:]
    is_target = bool(target.parameters or target.tokens)
    law = replace(
        law,
        recommendation=Recommendation(
            almr=aimed.almr,
            learning_rate=aimed.learning_rate,
            losses=surface.predict(aimed.almr.value, aimed.learning_rate.value),
            base=surface.base(),
            parameters=surface.parameters,
            tokens=surface.tokens,
            poor_fit=poor_fit(law.forms, surface, found.home, cells, goal),
            extrapolation=_extrapolation(surface),
        ),
        optimal_rate=fit_optimal_rate(found.home),
        predicted_front=predicted_front(surface, found.home),
        extrapolation=extrapolate(
            found.sizes, found.by_size, found.by_tokens, aimed if is_target else None, factor
        ),
        next_runs=choose_next_runs(
            surface, searched(found.home.domain, optima), points, optima / TOLERANCE, next_runs
        ),
    )
    return _unstated(law), reasons


def _find_optima(
    surface: Surface, points: RunsTable, goal: Objective, chance: np.ndarray
) -> FoundOptima:
    frame = surface.normalization
    same_size = points.parameters == frame.reference_parameters
    domain = make_domain(points.where(same_size), frame)
    home = find_optimum_at(
        surface, goal, domain, frame.reference_parameters, frame.reference_tokens
    )
    sizes = []
    for size in np.unique(points.parameters):
        both = make_domain(points.where(same_size | (points.parameters == size)), frame)
        place = find_optimum_at(surface, goal, both, float(size), frame.reference_tokens)
        sizes.append(home if size == frame.reference_parameters else place)
    budgets = [
        home
        if tokens == frame.reference_tokens
        else find_optimum_at(surface, goal, domain, frame.reference_parameters, float(tokens))
        for tokens in np.unique(points.tokens[same_size])
    ]
    prior = PRIOR + PRIOR_WIDTH * np.concatenate([np.zeros((1, len(PRIOR))), chance])
    log_sizes = np.log([place.parameters for place in sizes])
    log_tokens = np.log([place.tokens for place in budgets])
    return FoundOptima(
        home=home,
        sizes=sizes,
        budgets=budgets,
        by_size=make_powers(sizes, log_sizes, prior[:, 1]),
        by_tokens=make_powers(budgets, log_tokens, prior[:, 3]),
    )


def _aimed(surface: Surface, goal: Objective, found: FoundOptima) -> OptimumAt:
    """The optimum at the target: searched around where the powers carry that of home."""
    home = found.home
    if (surface.parameters, surface.tokens) == (home.parameters, home.tokens):
        return home
    grown = np.log(surface.parameters / home.parameters)
    longer = np.log(surface.tokens / home.tokens)
    shift = found.by_size.rate * grown + found.by_tokens.rate * longer
    place = find_optimum_at(surface, goal, home.domain, surface.parameters, surface.tokens, shift)
    return widen(place, surface.parameters / surface.largest, surface.tokens / surface.longest)


def _unstated(law: Law) -> Law:
    """What the table does not state is not stated."""
    recommendation, points = law.recommendation, law.runs
    assert recommendation
    unknown = {}
    if not np.isfinite(points.parameters).any():
        unknown["parameters"] = float("nan")
    if not np.isfinite(points.tokens).any():
        unknown["tokens"] = float("nan")
    bases = {"additional": points.base_additional, "original": points.base_original}
    base = {
        group: recommendation.base[group] if np.isfinite(values).any() else float("nan")
        for group, values in bases.items()
    }
    return replace(law, recommendation=replace(recommendation, base=base, **unknown))


def _extrapolation(surface: Surface) -> str | None:
    size, budget = surface.parameters / surface.largest, surface.tokens / surface.longest
    told = [f"{size:.0f} times the largest fitted size"] if size > FAR else []
    told += [f"{budget:.0f} times the largest fitted budget"] if budget > FAR else []
    if not told:
        return None
    by = widening(np.log(size)) * widening(np.log(budget))
    return (
        f"Extrapolation: {' and '.join(told)}; beyond {FAR:g} times, "
        f"intervals are widened by log10 of that, here {by:.2f}."
    )


SHARE_STEP = 0.05
INSIDE = 0.9
"""Where this share of the draws has its optimum within the grid, no run outside is proposed: there
the forms are least to be trusted."""


def choose_next_runs(
    surface: Surface, domain: Domain, points: RunsTable, optima: np.ndarray, count: int
) -> tuple[NextRun, ...]:
    """Greedily, settings at the home size that are not measured yet.

    ``optima`` (draws, 2) are in units of what counts as a difference. With o the optimum and p
    the two log losses of a setting, over the bootstrap draws, and v a run's noise, a run there
    leaves of the optimum's variance

        var(o) - cov(o, p) (cov(p) + v)^-1 cov(p, o)

    on average over outcomes, were the draws Gaussian; the setting with the smallest trace is taken,
    o and all p are conditioned on it, and the next one is sought.
    """
    frame = surface.normalization
    almr, rate = _candidates(domain, points, surface)
    learning_rate = np.exp(rate + frame.middle_rate)
    at = frame.settings(almr, learning_rate, frame.reference_parameters, frame.reference_tokens)
    losses = np.concatenate([surface.groups[group].spread(at) for group in GROUPS], axis=1)
    covariance = np.cov(np.concatenate([optima, losses], axis=1), rowvar=False)
    noise = np.diag([surface.groups[group].noise ** 2 for group in GROUPS])
    # Rows of each candidate's two losses; the first two rows are the optimum's.
    rows = 2 + np.arange(len(almr))[:, None] + len(almr) * np.arange(len(GROUPS))
    whole, free, chosen = float(np.trace(covariance[:2, :2])), np.ones(len(almr), bool), []
    for _ in range(min(count, len(almr))):
        measured = covariance[rows[:, :, None], rows[:, None, :]] + noise
        shared = covariance[rows, :2]
        shrink = np.einsum("cgo,cgo->c", shared, np.linalg.solve(measured, shared))
        best = int(np.argmax(np.where(free, shrink, -1.0)))
        across = covariance[:, rows[best]]
        covariance = covariance - across @ np.linalg.solve(measured[best], across.T)
        free[best] = False
        left = float(np.trace(covariance[:2, :2])) / whole
        chosen.append(NextRun(float(almr[best]), float(learning_rate[best]), left))
    return tuple(chosen)


def searched(domain: Domain, optima: np.ndarray) -> Domain:
    """The grid where hardly any optimum (draws, 2: ALMR, log rate) is outside, else all of it."""
    ends = np.array([domain.measured_almr, domain.measured_rate])
    inside = np.all((optima > ends[:, 0]) & (optima < ends[:, 1]), axis=1)
    return domain.within_the_grid() if inside.mean() >= INSIDE else domain


def _candidates(
    domain: Domain, points: RunsTable, surface: Surface
) -> tuple[np.ndarray, np.ndarray]:
    """Ratios in steps of 0.05 and rates in halves of the grid's steps, unless measured."""
    low, high = domain.almr[0], domain.almr[-1]
    ratios = SHARE_STEP * np.arange(np.ceil(low / SHARE_STEP - 1e-9), high / SHARE_STEP + 1e-9)
    home = surface.normalization.of(points.where(at_reference(points)))
    measured = np.unique(np.round(home.rate, 9))
    middles = (measured[1:] + measured[:-1]) / 2
    rates = np.unique(np.round([*measured, *middles, domain.rate[0], domain.rate[-1]], 9))
    almr, rate = (values.ravel() for values in np.meshgrid(np.round(ratios, 9), rates))
    off_ratio = np.abs(almr[:, None] - home.almr) > 1e-6
    off_rate = np.abs(rate[:, None] - home.rate) > 1e-6
    fresh = np.all(off_ratio | off_rate, axis=1)
    return almr[fresh], rate[fresh]
