"""Paired bootstrap intervals for the difference between two models, and the resulting findings.

A difference is a ratio of sums over units, ``sum(change) / sum(over)``. For a score, ``change`` is
the second model's score on an example minus the first model's, and ``over`` is 1. For bits per
byte, ``change`` is the difference in a document's nats, and ``over`` is the first model's nats. The
ratio is then the relative change in bits per byte, in which long documents have more weight.

A unit is one example with the values of both models, or all examples of a group. The bootstrap
resamples whole units (the paired and the cluster bootstrap: Efron and Tibshirani 1993, An
Introduction to the Bootstrap, chapters 8 and 13).
"""

from collections.abc import Iterator, Sequence
import math
from typing import Literal

from jaxtyping import Float
import numpy as np
from scipy.stats import norm, t

Finding = Literal["gained", "kept", "forgotten", "no significant difference", "inconclusive"]
LEVEL = 0.95
DRAWS = 10_000
# Number of resampling weights that are drawn at a time; they take 32 MB in float64.
_CHUNK = 4_000_000


def ratio_intervals(
    change: Float[np.ndarray, "pairs units"],
    over: Float[np.ndarray, "pairs units"],
    levels: Sequence[float],
    *,
    draws: int = DRAWS,
) -> Float[np.ndarray, "levels pairs 2"]:
    """Return bootstrap intervals of ``sum(change) / sum(over)`` at each of ``levels``.

    The random seed is fixed, so the result is deterministic. An interval is computed from the 2.5th
    and 97.5th percentiles of the resampled ratios. The distances of these percentiles from the
    observed ratio are multiplied by t / z and by the square root of n / (n - 1). Here n is the
    number of units, t is the two-sided quantile of Student's t distribution with n - 1 degrees of
    freedom at the requested level, and z is the two-sided quantile of the normal distribution at
    95 %. There are two reasons for this method. Percentiles at levels near 100 % would need more
    draws, and plain percentile intervals of few units are too narrow (Hesterberg 2015, The American
    Statistician 69, 371-386, on expanded percentile intervals). If there is a single unit, the
    interval is from minus infinity to infinity.
    """
    pairs, units = change.shape
    if units < 2:
        return np.tile([-np.inf, np.inf], (len(levels), pairs, 1))
    ratios = np.concatenate(
        [(change @ w.T) / (over @ w.T) for w in _resampled(units, draws)], axis=1
    )
    estimate = (change.sum(1) / over.sum(1))[:, None]
    distance = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1).T - estimate
    tails = (1 + np.asarray(levels)) / 2
    # The bootstrap variance of a mean is (n - 1) / n times the unbiased variance.
    stretch = t.ppf(tails, units - 1) * np.sqrt(units / (units - 1)) / norm.ppf((1 + LEVEL) / 2)
    return estimate + stretch[:, None, None] * distance


def corrected_level(comparisons: int) -> float:
    """Return the Bonferroni-corrected level of each of ``comparisons`` intervals.

    At this level, the probability that all intervals contain their true values is at least 95 %.
    """
    return 1 - (1 - LEVEL) / max(comparisons, 1)


def classify(low: float, high: float, margin: float) -> Finding:
    """Return the finding for a change with the interval ``low`` to ``high``.

    Positive changes are improvements. The finding is "kept" if the interval is within ``margin`` of
    zero (an equivalence test: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15). Otherwise, it is
    "gained" if the interval is above zero, "forgotten" if the interval is below zero, and "no
    significant difference" if the interval contains zero. An infinite interval, which one example
    has, is "inconclusive".
    """
    if math.isinf(high - low):
        return "inconclusive"
    if -margin <= low and high <= margin:
        return "kept"
    if low > 0:
        return "gained"
    return "forgotten" if high < 0 else "no significant difference"


def _resampled(units: int, draws: int) -> Iterator[Float[np.ndarray, "draws units"]]:
    """Yield, in chunks of draws, the number of times that each draw contains each unit."""
    rng = np.random.default_rng(0)
    size = max(_CHUNK // units, 1)
    for done in range(0, draws, size):
        yield _counts(rng, units, min(size, draws - done))


def _counts(rng: np.random.Generator, units: int, draws: int) -> Float[np.ndarray, "draws units"]:
    # A single bincount counts all draws: the counts of draw d start at index d * units.
    taken = rng.integers(units, size=(draws, units)) + units * np.arange(draws)[:, None]
    return np.bincount(taken.ravel(), minlength=draws * units).reshape(draws, units).astype(float)
