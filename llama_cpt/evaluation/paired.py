"""Paired bootstrap intervals of differences between models, and what they show.

A difference is a ratio of sums over units, ``sum(change) / sum(over)``. For a score it is the
change of each example over 1. For bits per byte it is the change of each document's nats over the
first model's nats, which is the relative change and weights documents by their length. A unit is
an example, with the values of both models, or all examples of a group; units are resampled whole
(the paired and the cluster bootstrap: Efron and Tibshirani 1993, An Introduction to the Bootstrap,
chapters 8 and 13).
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from jaxtyping import Float
import numpy as np
from scipy.stats import norm, t

Finding = Literal["gained", "kept", "forgotten", "not told apart"]
LEVEL = 0.95
DRAWS = 10_000
# Draws are made in chunks of this many resampling weights, 32 MB in float64.
_CHUNK = 4_000_000


def ratio_intervals(
    change: Float[np.ndarray, "pairs units"],
    over: Float[np.ndarray, "pairs units"],
    levels: Sequence[float],
    *,
    draws: int = DRAWS,
) -> Float[np.ndarray, "levels pairs 2"]:
    """Return bootstrap intervals of ``sum(change) / sum(over)`` at each of ``levels``.

    The result is deterministic. An interval has the 2.5 and 97.5 percentiles of the resampled
    ratios, with their distances to the ratio scaled by t / z: Student's t at the level, with the
    number of units less one as degrees of freedom, over the normal at 95 %. Percentiles at the
    corrected levels would need more draws, and plain percentiles of few units are too narrow
    (Hesterberg 2015, The American Statistician 69, 371-386, on expanded percentile intervals). A
    single unit has an interval from minus infinity to infinity.
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
    # The bootstrap variance of a mean is (n - 1) / n of the unbiased one; the root corrects it.
    stretch = t.ppf(tails, units - 1) * np.sqrt(units / (units - 1)) / norm.ppf((1 + LEVEL) / 2)
    return estimate + stretch[:, None, None] * distance


def corrected_level(comparisons: int) -> float:
    """Return the Bonferroni level at which all intervals are correct at once in 95 % of cases."""
    return 1 - (1 - LEVEL) / max(comparisons, 1)


def classify(low: float, high: float, margin: float) -> Finding:
    """Classify the interval of a change, of which more is better.

    Kept: the interval is within ``margin`` of zero, on whichever side. This is an equivalence test
    (Schuirmann 1987, J. Pharmacokinet. Biopharm. 15). Gained or forgotten: it is on one side of
    zero, and not within the margin. Otherwise the examples are too few.
    """
    if -margin <= low and high <= margin:
        return "kept"
    if low > 0:
        return "gained"
    return "forgotten" if high < 0 else "not told apart"


def _resampled(units: int, draws: int) -> Iterator[Float[np.ndarray, "draws units"]]:
    """Yield chunks of draws: the number of times that each draw takes each unit."""
    rng = np.random.default_rng(0)
    size = max(_CHUNK // units, 1)
    for done in range(0, draws, size):
        yield _counts(rng, units, min(size, draws - done))


def _counts(rng: np.random.Generator, units: int, draws: int) -> Float[np.ndarray, "draws units"]:
    # One bincount for all draws: draw d counts its units from d * units on.
    taken = rng.integers(units, size=(draws, units)) + units * np.arange(draws)[:, None]
    return np.bincount(taken.ravel(), minlength=draws * units).reshape(draws, units).astype(float)
