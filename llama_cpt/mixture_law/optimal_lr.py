"""The best learning rate for each ratio, and the line through them."""

import numpy as np

from llama_cpt.mixture_law.intervals import Interval, make_interval, quantiles
from llama_cpt.mixture_law.law import OptimalRate
from llama_cpt.mixture_law.optima import OptimumAt

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
