"""Values with their 90 % confidence intervals."""

from typing import NamedTuple

import numpy as np

Number = np.ndarray | float
LEVEL = 0.9


class Interval(NamedTuple):
    """A value and its 90 % confidence interval; numbers, or arrays of one shape."""

    value: Number
    low: Number
    high: Number


def quantiles(draws: np.ndarray) -> tuple[Number, Number]:
    """Return the ends of the equal-tailed interval of draws along the first axis."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def make_interval(value: Number, draws: np.ndarray) -> Interval:
    """Return the interval of draws, widened to contain the value if necessary."""
    low, high = quantiles(draws)
    return Interval(value, np.minimum(value, low)[()], np.maximum(value, high)[()])
