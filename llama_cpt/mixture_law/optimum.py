"""Minimization of the objective on fitted loss surfaces, and Pareto fronts of the two losses.

The surfaces of all bootstrap draws are searched at once, first over the learning rate at every
ratio, then over the ratio.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.interpolate import CubicSpline

from llama_cpt.mixture_law.intervals import Interval, make_interval, quantiles
from llama_cpt.mixture_law.law import OptimalRate, Pareto
from llama_cpt.mixture_law.normalization import Normalization, Settings, at_reference
from llama_cpt.mixture_law.objective import PENALTY, Bound, Objective
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.surface import LARGEST_LOG, Surface
from llama_cpt.mixture_law.table import GROUPS

RATIOS, RATES, FINE_RATES = 33, 17, 97
"""Numbers of evaluated ratios, evaluated learning rates and interpolated learning rates."""
MIN_SHARE = 0.02
"""Smallest distance of a searched ratio from 0 or 1 if the grid includes runs at 0 or 1."""


@dataclass(frozen=True)
class Domain:
    """The searched ratios and learning rates: the grid of the runs and a margin around it.

    The margin is half a grid step. Without it, intervals of optima near the edge would be
    truncated.
    """

    almr: np.ndarray
    """Equally spaced ratios, (RATIOS)."""
    rate: np.ndarray
    """Equally spaced log learning rates, normalized as in ``Settings``, (RATES)."""
    grid_almr: tuple[float, float]
    """Lowest and highest ratio of the runs, clipped to the range of ``almr``."""
    grid_rate: tuple[float, float]
    """Lowest and highest log learning rate of the runs, normalized as in ``Settings``."""

    def within_grid(self) -> "Domain":
        """Return the domain without the margin."""
        almr, rate = (
            np.linspace(*ends, len(values))
            for ends, values in ((self.grid_almr, self.almr), (self.grid_rate, self.rate))
        )
        return replace(self, almr=almr, rate=rate)

    def settings(self, normalization: Normalization, parameters: float, tokens: float) -> Settings:
        """Return the settings of all (ratio, rate) pairs; the rate varies fastest."""
        almr, rate = np.meshgrid(self.almr, self.rate, indexing="ij")
        learning_rate = np.exp(rate.ravel() + normalization.middle_rate)
        return normalization.settings(almr.ravel(), learning_rate, parameters, tokens)


def make_domain(runs: RunsTable, normalization: Normalization) -> Domain:
    """Return the domain around the grid of the runs."""
    almr = np.unique(runs.almr)
    rate = np.unique(np.log(runs.learning_rate) - normalization.middle_rate)
    # The log odds and the singular forms are defined only for ratios in the open interval (0, 1).
    low, high = almr[0] - np.diff(almr)[0] / 2, almr[-1] + np.diff(almr)[-1] / 2
    low = max(low, almr[0] / 2 or MIN_SHARE)
    high = min(high, (1 + almr[-1]) / 2 if almr[-1] < 1 else 1 - MIN_SHARE)
    return Domain(
        almr=np.linspace(low, high, RATIOS),
        rate=np.linspace(rate[0] - np.diff(rate)[0] / 2, rate[-1] + np.diff(rate)[-1] / 2, RATES),
        grid_almr=(float(max(almr[0], low)), float(min(almr[-1], high))),
        grid_rate=(float(rate[0]), float(rate[-1])),
    )


@dataclass(frozen=True)
class Optima:
    """The ratios and learning rates that minimize the objective on each of several surfaces."""

    almr: np.ndarray
    """Optimal ratio, (surfaces)."""
    rate: np.ndarray
    """Optimal log learning rate, normalized as in ``Settings``, (surfaces)."""
    rate_by_ratio: np.ndarray
    """Optimal log learning rate at each ratio of the domain, (surfaces, ratios)."""


def find_optima(
    logs: Mapping[str, np.ndarray], domain: Domain, objective: Objective, bases: Mapping[str, float]
) -> Optima:
    """Return the minimum of the objective on each surface.

    ``logs`` contains the log losses at ``Domain.settings`` by group, each (surfaces, ratios *
    rates). ``bases`` contains the base-model losses by group.
    """
    # Spline interpolation is linear in the values, so one matrix interpolates all surfaces.
    fine = np.linspace(domain.rate[0], domain.rate[-1], FINE_RATES)
    spline = CubicSpline(domain.rate, np.eye(RATES))(fine).T
    dense = {
        group: values.reshape(-1, len(domain.almr), RATES) @ spline
        for group, values in logs.items()
    }
    optimal_rates, best = _along_rate(dense, fine, objective, bases)
    return _along_ratio(optimal_rates, best, domain.almr)


def _along_rate(
    logs: Mapping[str, np.ndarray],
    rates: np.ndarray,
    objective: Objective,
    bases: Mapping[str, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the optimal log rate at each ratio and its log objective, each (surfaces, ratios)."""
    additional, original = logs["additional"], logs["original"]
    if not isinstance(objective, Bound):
        value = np.log(objective.evaluate(np.exp(additional), np.exp(original), bases["original"]))
        return _vertex(value, rates, np.ones_like(value))
    above = original - np.log((1 + objective.forgetting) * bases["original"])
    # This is ``Bound.evaluate`` in terms of log losses.
    rate, best = _vertex(additional + PENALTY * np.maximum(above, 0), rates, above)
    # If the original loss crosses the bound between two rates, the objective has a kink at the
    # crossing, which is often the minimum.
    left, right = above[..., :-1], above[..., 1:]
    # Linear interpolation to the rate at which the original loss equals the bound.
    part = np.divide(left, left - right, out=np.zeros_like(left), where=left * right < 0)
    at_kink = additional[..., :-1] + part * np.diff(additional, axis=-1)
    at_kink = np.where(left * right < 0, at_kink, np.inf)
    kink = np.argmin(at_kink, axis=-1)[..., None]
    kink_rate = rates[kink[..., 0]] + _take(part, kink) * (rates[1] - rates[0])
    lower = _take(at_kink, kink) < best
    return np.where(lower, kink_rate, rate), np.where(lower, _take(at_kink, kink), best)


def _take(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the values at ``index``, (..., 1), along the last axis, and drop that axis."""
    return np.take_along_axis(values, index, axis=-1)[..., 0]


def _vertex(
    values: np.ndarray, positions: np.ndarray, side: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the position and the value of the minimum along the last axis.

    The minimum is refined by the parabola through the lowest entry and its two neighbors. It is not
    refined if the lowest entry is at an end of the axis, or if the values have a kink between the
    two neighbors, where ``side`` changes its sign.
    """
    index = np.argmin(values, axis=-1)[..., None]
    inner = np.clip(index, 1, values.shape[-1] - 2)
    low, mid, high = (_take(values, inner + step) for step in (-1, 0, 1))
    smooth = (_take(side, inner - 1) > 0) == (_take(side, inner + 1) > 0)
    bend = low - 2 * mid + high
    # The lowest entry at an end of the axis has only one neighbor. A parabola without positive
    # curvature has no minimum.
    smooth &= (index == inner)[..., 0] & (bend > 1e-12)
    shift = np.divide(low - high, 2 * bend, out=np.zeros_like(bend), where=smooth)
    at = positions[index[..., 0]] + shift * (positions[1] - positions[0])
    return at, _take(values, index) - (low - high) * shift / 4


def _along_ratio(optimal_rates: np.ndarray, best: np.ndarray, almr: np.ndarray) -> Optima:
    """Return the optimal ratios, and the learning rates interpolated to these ratios."""
    almr_at_best, _ = _vertex(best, almr, np.ones_like(best))
    step = (almr_at_best - almr[0]) / (almr[1] - almr[0])
    left = np.clip(step.astype(int), 0, len(almr) - 2)[..., None]
    part = step - left[..., 0]
    rate = (1 - part) * _take(optimal_rates, left) + part * _take(optimal_rates, left + 1)
    return Optima(almr_at_best, rate, optimal_rates)


@dataclass(frozen=True)
class OptimumAt:
    """The optima at one model size and token budget."""

    parameters: float
    tokens: float
    domain: Domain
    optima: Optima
    """Optima of the selected fit (entry 0) and of the bootstrap draws (remaining entries)."""
    middle_rate: float
    """``Normalization.middle_rate``; add it to ``Optima.rate`` to get log(learning rate)."""
    rate_shift: float
    """Number that the search for the selected fit adds to the log rates of the domain."""

    @property
    def log_odds(self) -> np.ndarray:
        """log(ALMR / (1 - ALMR)) of each optimum."""
        return np.log(self.optima.almr / (1 - self.optima.almr))

    @property
    def almr(self) -> Interval:
        """Optimal ratio, with its bootstrap interval."""
        return make_interval(float(self.optima.almr[0]), self.optima.almr[1:])

    @property
    def learning_rate(self) -> Interval:
        """Optimal learning rate, with its bootstrap interval."""
        rates = np.exp(np.clip(self.optima.rate + self.middle_rate, -LARGEST_LOG, LARGEST_LOG))
        return make_interval(float(rates[0]), rates[1:])


def find_optimum_at(
    surface: Surface,
    objective: Objective,
    domain: Domain,
    parameters: float,
    tokens: float,
    shift: np.ndarray | float = 0.0,
) -> OptimumAt:
    """Return the optima at a model size and token budget.

    The search adds ``shift`` to the log rates of the domain. ``shift`` is one number, or an array
    with one entry for the selected fit followed by one entry per draw.
    """
    normalization = surface.normalization
    at = domain.settings(normalization, parameters, tokens)
    reference_base = normalization.base(normalization.reference_parameters)
    shifts = np.broadcast_to(shift, 1 + surface.draws)
    logs = {}
    for group in GROUPS:
        fits = surface.groups[group]
        # Each draw has its own shift, so that its optimum stays inside the searched rates.
        both = [fits.center(at, shifts[:1])[None], fits.spread(at, shifts[1:])]
        logs[group] = np.concatenate(both) + np.log(reference_base[group])
    found = find_optima(logs, domain, objective, normalization.base(parameters))
    optima = Optima(found.almr, found.rate + shifts, found.rate_by_ratio + shifts[:, None])
    return OptimumAt(
        parameters, tokens, domain, optima, normalization.middle_rate, float(shifts[0])
    )


MIN_RATIOS = 5
"""Minimum number of ratios with an optimal rate inside the grid, for the fit of a line."""


def fit_optimal_rate(optimum_at: OptimumAt) -> OptimalRate | None:
    """Return the line fitted to the optimal learning rates at the ratios of the domain.

    The result is None if the optimal rate is inside the grid for fewer than ``MIN_RATIOS`` ratios.
    """
    domain, optimal_rates = optimum_at.domain, optimum_at.optima.rate_by_ratio
    low, high = domain.grid_rate
    inside = (optimal_rates[0] > low) & (optimal_rates[0] < high)
    inside &= (domain.almr >= domain.grid_almr[0]) & (domain.almr <= domain.grid_almr[1])
    if inside.sum() < MIN_RATIOS:
        return None
    almr, rates = domain.almr[inside], optimal_rates[:, inside]
    # Least squares of log(LR) = intercept + slope * log(ALMR / (1 - ALMR)), for all draws at once.
    odds = np.log(almr / (1 - almr))
    slope = (rates @ (odds - odds.mean())) / np.sum((odds - odds.mean()) ** 2)
    intercept = rates.mean(axis=1) - slope * odds.mean() + optimum_at.middle_rate
    learning_rates = np.exp(rates + optimum_at.middle_rate)
    # The interval is that of the optimal rate at each ratio, not that of the line.
    low_rate, high_rate = quantiles(learning_rates[1:])
    center = learning_rates[0]
    return OptimalRate(
        slope=make_interval(float(slope[0]), slope[1:]),
        intercept=make_interval(float(intercept[0]), intercept[1:]),
        almr=almr,
        learning_rate=Interval(center, np.minimum(center, low_rate), np.maximum(center, high_rate)),
        parameters=optimum_at.parameters,
    )


FRONT_POINTS = 41
"""Number of ratios, and of learning rates, in the grid of a predicted Pareto front."""


def predicted_front(surface: Surface, optimum_at: OptimumAt) -> Pareto:
    """Return the Pareto front of the predictions on a fine grid that spans the runs' settings."""
    domain = optimum_at.domain
    almr, rate = np.meshgrid(
        np.linspace(*domain.grid_almr, FRONT_POINTS),
        np.linspace(*domain.grid_rate, FRONT_POINTS),
    )
    almr, learning_rate = almr.ravel(), np.exp(rate.ravel() + optimum_at.middle_rate)
    at = surface.normalization.settings(
        almr, learning_rate, optimum_at.parameters, optimum_at.tokens
    )
    reference_base = surface.normalization.base(surface.normalization.reference_parameters)
    additional, original = (
        reference_base[group] * np.exp(surface.groups[group].center(at))
        for group in ("additional", "original")
    )
    return _front(almr, learning_rate, additional, original, np.full(len(almr), ""))


def measured_front(runs: RunsTable) -> Pareto:
    """Return the Pareto front of the runs at the reference model size and token budget."""
    runs = runs.where(at_reference(runs))
    return _front(runs.almr, runs.learning_rate, runs.additional, runs.original, runs.run)


def _front(
    almr: np.ndarray,
    learning_rate: np.ndarray,
    additional: np.ndarray,
    original: np.ndarray,
    run: np.ndarray,
) -> Pareto:
    """Return the Pareto front of the settings, sorted by ascending additional loss."""
    # In that order, a setting is on the front if its original loss is the lowest so far.
    order = np.lexsort((original, additional))
    lowest = np.minimum.accumulate(np.concatenate([[np.inf], original[order][:-1]]))
    kept = order[original[order] < lowest]
    return Pareto(almr[kept], learning_rate[kept], additional[kept], original[kept], run[kept])
