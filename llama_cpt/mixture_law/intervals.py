"""Point estimates with 90 % intervals."""

from typing import NamedTuple

import numpy as np

Number = np.ndarray | float
LEVEL = 0.9
"""Nominal coverage of all intervals."""


class Interval(NamedTuple):
    """A point estimate and the ends of its 90 % interval, as numbers or arrays of equal shape."""

    value: Number
    low: Number
    high: Number


def quantiles(draws: np.ndarray) -> tuple[Number, Number]:
    """Return the ends of the equal-tailed 90 % interval of ``draws`` along the first axis."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def make_interval(value: Number, draws: np.ndarray) -> Interval:
    """Return ``value`` with the 90 % interval of ``draws`` along the first axis.

    The interval is extended to contain ``value`` if necessary.
    """
    low, high = quantiles(draws)
    return Interval(value, np.minimum(value, low)[()], np.maximum(value, high)[()])
