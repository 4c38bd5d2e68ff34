"""What is said of an optimum: the line of best rates, the fronts."""

import numpy as np

from llama_cpt.mixture_law.bands import Band, band, quantiles
from llama_cpt.mixture_law.law import Pareto, Ridge
from llama_cpt.mixture_law.optimum import Domain
from llama_cpt.mixture_law.places import Place
from llama_cpt.mixture_law.points import Points
from llama_cpt.mixture_law.surface import Surface

FRONT_CELLS = 41
FEWEST_ON_RIDGE = 5
"""Ratios, of those searched, whose best rate is within the measured ones."""


def make_ridge(place: Place) -> Ridge | None:
    """The line through the best rates; None where hardly any lies within the measured rates."""
    domain, ridge = place.domain, place.optima.ridge
    low, high = domain.measured_rate
    inside = (ridge[0] > low) & (ridge[0] < high)
    inside &= (domain.almr >= domain.measured_almr[0]) & (domain.almr <= domain.measured_almr[1])
    if inside.sum() < FEWEST_ON_RIDGE:
        return None
    almr, rates = domain.almr[inside], ridge[:, inside]
    odds = np.log(almr / (1 - almr))
    slope = (rates @ (odds - odds.mean())) / np.sum((odds - odds.mean()) ** 2)
    intercept = rates.mean(axis=1) - slope * odds.mean() + place.middle_rate
    learning_rates = np.exp(rates + place.middle_rate)
    low_rate, high_rate = quantiles(learning_rates[1:])
    centre = learning_rates[0]
    return Ridge(
        slope=band(float(slope[0]), slope[1:]),
        intercept=band(float(intercept[0]), intercept[1:]),
        almr=almr,
        learning_rate=Band(centre, np.minimum(centre, low_rate), np.maximum(centre, high_rate)),
        parameters=place.parameters,
    )


def predicted_front(surface: Surface, place: Place) -> Pareto:
    """Of a fine grid over what was measured."""
    domain: Domain = place.domain
    almr, rate = np.meshgrid(
        np.linspace(*domain.measured_almr, FRONT_CELLS),
        np.linspace(*domain.measured_rate, FRONT_CELLS),
    )
    almr, learning_rate = almr.ravel(), np.exp(rate.ravel() + place.middle_rate)
    at = surface.frame.settings(almr, learning_rate, place.parameters, place.tokens)
    home = surface.frame.base(surface.frame.home_parameters)
    additional, original = (
        home[group] * np.exp(surface.groups[group].centre(at))
        for group in ("additional", "original")
    )
    return _front(almr, learning_rate, additional, original, np.full(len(almr), ""))


def measured_front(points: Points) -> Pareto:
    """Of the runs at the largest size and budget."""
    points = points.where(points.parameters == points.parameters.max())
    points = points.where(points.tokens == points.tokens.max())
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
