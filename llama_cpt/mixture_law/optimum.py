"""Where a goal is best met on many surfaces at once: first along the rate, then along the ratio."""

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
"""Ratios and rates at which surfaces are asked, and rates of the spline between them."""
NARROWEST_SHARE = 0.02
"""The searched ratios stay this far from 0 and 1 where there are runs at them."""


@dataclass(frozen=True)
class Domain:
    """What is searched: the measured grid and half a step beyond it, so that no interval is cut."""

    almr: np.ndarray
    rate: np.ndarray
    """log(learning rate), as in ``Settings``."""
    measured_almr: tuple[float, float]
    """Of those searched."""
    measured_rate: tuple[float, float]

    def within_the_grid(self) -> "Domain":
        """The same without what lies beyond the measured settings."""
        almr, rate = (
            np.linspace(*ends, len(values))
            for ends, values in ((self.measured_almr, self.almr), (self.measured_rate, self.rate))
        )
        return replace(self, almr=almr, rate=rate)

    def settings(self, frame: Normalization, parameters: float, tokens: float) -> Settings:
        """Every ratio with every rate, flat."""
        almr, rate = np.meshgrid(self.almr, self.rate, indexing="ij")
        learning_rate = np.exp(rate.ravel() + frame.middle_rate)
        return frame.settings(almr.ravel(), learning_rate, parameters, tokens)


def make_domain(points: RunsTable, frame: Normalization) -> Domain:
    """Around the settings of these runs."""
    almr = np.unique(points.almr)
    rate = np.unique(np.log(points.learning_rate) - frame.middle_rate)
    low, high = almr[0] - np.diff(almr)[0] / 2, almr[-1] + np.diff(almr)[-1] / 2
    low = max(low, almr[0] / 2 or NARROWEST_SHARE)
    high = min(high, (1 + almr[-1]) / 2 if almr[-1] < 1 else 1 - NARROWEST_SHARE)
    return Domain(
        almr=np.linspace(low, high, RATIOS),
        rate=np.linspace(rate[0] - np.diff(rate)[0] / 2, rate[-1] + np.diff(rate)[-1] / 2, RATES),
        measured_almr=(float(max(almr[0], low)), float(min(almr[-1], high))),
        measured_rate=(float(rate[0]), float(rate[-1])),
    )


@dataclass(frozen=True)
class Optima:
    """An entry a surface."""

    almr: np.ndarray
    rate: np.ndarray
    rate_by_ratio: np.ndarray
    """(surfaces, ratios): the best rate of each ratio of the domain."""


def find_optima(
    logs: Mapping[str, np.ndarray], domain: Domain, goal: Objective, bases: Mapping[str, float]
) -> Optima:
    """Of surfaces given as log loss by group, (surfaces, ratios * rates), at bases' losses."""
    fine = np.linspace(domain.rate[0], domain.rate[-1], FINE_RATES)
    spline = CubicSpline(domain.rate, np.eye(RATES))(fine).T
    dense = {
        group: values.reshape(-1, len(domain.almr), RATES) @ spline
        for group, values in logs.items()
    }
    ridge, best = _along_rate(dense, fine, goal, bases)
    return _along_ratio(ridge, best, domain.almr)


def _along_rate(
    logs: Mapping[str, np.ndarray], rates: np.ndarray, goal: Objective, bases: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Best rate and its objective (in logs), for each surface and ratio."""
    additional, original = logs["additional"], logs["original"]
    if not isinstance(goal, Bound):
        value = np.log(goal.evaluate(np.exp(additional), np.exp(original), bases["original"]))
        return _vertex(value, rates, np.ones_like(value))
    above = original - np.log((1 + goal.forgetting) * bases["original"])
    rate, best = _vertex(additional + PENALTY * np.maximum(above, 0), rates, above)
    # Where the bound is met between two rates the objective has a kink, often its lowest point.
    left, right = above[..., :-1], above[..., 1:]
    part = np.divide(left, left - right, out=np.zeros_like(left), where=left * right < 0)
    at_kink = additional[..., :-1] + part * np.diff(additional, axis=-1)
    at_kink = np.where(left * right < 0, at_kink, np.inf)
    kink = np.argmin(at_kink, axis=-1)[..., None]
    kink_rate = rates[kink[..., 0]] + _take(part, kink) * (rates[1] - rates[0])
    lower = _take(at_kink, kink) < best
    return np.where(lower, kink_rate, rate), np.where(lower, _take(at_kink, kink), best)


def _take(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, index, axis=-1)[..., 0]


def _vertex(
    values: np.ndarray, places: np.ndarray, side: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest point along the last axis, of the parabola through it and its neighbours.

    The entry itself where the three are not on one ``side`` of 0: no parabola goes round a kink.
    """
    index = np.argmin(values, axis=-1)[..., None]
    inner = np.clip(index, 1, values.shape[-1] - 2)
    low, mid, high = (_take(values, inner + step) for step in (-1, 0, 1))
    smooth = (_take(side, inner - 1) > 0) == (_take(side, inner + 1) > 0)
    bend = low - 2 * mid + high
    smooth &= (index == inner)[..., 0] & (bend > 1e-12)
    shift = np.divide(low - high, 2 * bend, out=np.zeros_like(bend), where=smooth)
    at = places[index[..., 0]] + shift * (places[1] - places[0])
    return at, _take(values, index) - (low - high) * shift / 4


def _along_ratio(ridge: np.ndarray, best: np.ndarray, almr: np.ndarray) -> Optima:
    place, _ = _vertex(best, almr, np.ones_like(best))
    step = (place - almr[0]) / (almr[1] - almr[0])
    left = np.clip(step.astype(int), 0, len(almr) - 2)[..., None]
    part = step - left[..., 0]
    rate = (1 - part) * _take(ridge, left) + part * _take(ridge, left + 1)
    return Optima(place, rate, ridge)


@dataclass(frozen=True)
class OptimumAt:
    """One size and budget with its optima: entry 0 is the chosen fit's, the others the draws'."""

    parameters: float
    tokens: float
    domain: Domain
    optima: Optima
    middle_rate: float
    moved: float
    """By how much the rates of the domain are, for the chosen fit."""

    @property
    def odds(self) -> np.ndarray:
        """Log odds of the ratios."""
        return np.log(self.optima.almr / (1 - self.optima.almr))

    @property
    def almr(self) -> Interval:
        """Of the optimum."""
        return make_interval(float(self.optima.almr[0]), self.optima.almr[1:])

    @property
    def learning_rate(self) -> Interval:
        """Of the optimum."""
        rates = np.exp(np.clip(self.optima.rate + self.middle_rate, -LARGEST_LOG, LARGEST_LOG))
        return make_interval(float(rates[0]), rates[1:])


def find_optimum_at(
    surface: Surface,
    goal: Objective,
    domain: Domain,
    parameters: float,
    tokens: float,
    shift: np.ndarray | float = 0.0,
) -> OptimumAt:
    """The optima in a domain, whose rates are moved by ``shift`` (a number, or one an entry)."""
    frame = surface.normalization
    at = domain.settings(frame, parameters, tokens)
    home = frame.base(frame.reference_parameters)
    moves = np.broadcast_to(shift, 1 + surface.draws)
    logs = {}
    for group in GROUPS:
        fits = surface.groups[group]
        both = [fits.center(at, moves[:1])[None], fits.spread(at, moves[1:])]
        logs[group] = np.concatenate(both) + np.log(home[group])
    found = find_optima(logs, domain, goal, frame.base(parameters))
    optima = Optima(found.almr, found.rate + moves, found.rate_by_ratio + moves[:, None])
    return OptimumAt(parameters, tokens, domain, optima, frame.middle_rate, float(moves[0]))


FEWEST = 5
"""Ratios, of those searched, whose best rate is within the measured ones."""


def fit_optimal_rate(place: OptimumAt) -> OptimalRate | None:
    """The line through the best rates; None where hardly any lies within the measured rates."""
    domain, ridge = place.domain, place.optima.rate_by_ratio
    low, high = domain.measured_rate
    inside = (ridge[0] > low) & (ridge[0] < high)
    inside &= (domain.almr >= domain.measured_almr[0]) & (domain.almr <= domain.measured_almr[1])
    if inside.sum() < FEWEST:
        return None
    almr, rates = domain.almr[inside], ridge[:, inside]
    odds = np.log(almr / (1 - almr))
    slope = (rates @ (odds - odds.mean())) / np.sum((odds - odds.mean()) ** 2)
    intercept = rates.mean(axis=1) - slope * odds.mean() + place.middle_rate
    learning_rates = np.exp(rates + place.middle_rate)
    low_rate, high_rate = quantiles(learning_rates[1:])
    centre = learning_rates[0]
    return OptimalRate(
        slope=make_interval(float(slope[0]), slope[1:]),
        intercept=make_interval(float(intercept[0]), intercept[1:]),
        almr=almr,
        learning_rate=Interval(centre, np.minimum(centre, low_rate), np.maximum(centre, high_rate)),
        parameters=place.parameters,
    )


CELLS = 41
"""Ratios, and rates, of the grid that is predicted."""


def predicted_front(surface: Surface, place: OptimumAt) -> Pareto:
    """Of a fine grid over what was measured."""
    domain = place.domain
    almr, rate = np.meshgrid(
        np.linspace(*domain.measured_almr, CELLS),
        np.linspace(*domain.measured_rate, CELLS),
    )
    almr, learning_rate = almr.ravel(), np.exp(rate.ravel() + place.middle_rate)
    at = surface.normalization.settings(almr, learning_rate, place.parameters, place.tokens)
    home = surface.normalization.base(surface.normalization.reference_parameters)
    additional, original = (
        home[group] * np.exp(surface.groups[group].center(at))
        for group in ("additional", "original")
    )
    return _front(almr, learning_rate, additional, original, np.full(len(almr), ""))


def measured_front(points: RunsTable) -> Pareto:
    """Of the runs at the home size and budget."""
    points = points.where(at_reference(points))
    return _front(points.almr, points.learning_rate, points.additional, points.original, points.run)


def _front(
    almr: np.ndarray,
    learning_rate: np.ndarray,
    additional: np.ndarray,
    original: np.ndarray,
    run: np.ndarray,
) -> Pareto:
    order = np.lexsort((original, additional))
    lowest = np.minimum.accumulate(np.concatenate([[np.inf], original[order][:-1]]))
    kept = order[original[order] < lowest]
    return Pareto(almr[kept], learning_rate[kept], additional[kept], original[kept], run[kept])
