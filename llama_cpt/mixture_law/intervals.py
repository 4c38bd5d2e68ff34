"""Values with their intervals of 90 %."""

from typing import NamedTuple

import numpy as np

Number = np.ndarray | float
LEVEL = 0.9


class Interval(NamedTuple):
    """A value and the interval of 90 % around it; numbers, or arrays of one shape."""

    value: Number
    low: Number
    high: Number


def quantiles(draws: np.ndarray) -> tuple[Number, Number]:
    """Ends of the interval over the first axis."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def make_interval(value: Number, draws: np.ndarray) -> Interval:
    """The interval of draws, widened to hold the value where it does not."""
    low, high = quantiles(draws)
    return Interval(value, np.minimum(value, low)[()], np.maximum(value, high)[()])
