"""Differences between models on the same examples: paired bootstrap intervals and their marks.

A difference is a ratio of sums over units, ``sum(change) / sum(over)``: for a score the change of
each example over 1, for bits per byte the change of each document's nats over the first model's,
which weighs a document by its bytes and tells the relative change. Units are resampled whole: both
models' values of an example, all examples of a group.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from jaxtyping import Float
import numpy as np
from scipy.stats import norm, t

Finding = Literal["gained", "kept", "forgotten", "not told apart"]
LEVEL = 0.95
DRAWS = 10_000
# Weights held at a time.
_CHUNK = 4_000_000


def ratio_intervals(
    change: Float[np.ndarray, "pairs units"],
    over: Float[np.ndarray, "pairs units"],
    levels: Sequence[float],
    *,
    draws: int = DRAWS,
) -> Float[np.ndarray, "levels pairs 2"]:
    """Intervals of ``sum(change) / sum(over)`` at each of ``levels``; always the same.

    The 2.5 and the 97.5 percentile of the resampled ratios, each distance to the ratio stretched as
    Student's t at the level and the number of units is to the normal at 95 %: percentiles further
    out would need more draws than there are, and few units make the plain ones too narrow. A single
    unit has no interval: it reaches from minus infinity to infinity.
    """
    pairs, units = change.shape
    if units < 2:
        return np.tile([-np.inf, np.inf], (len(levels), pairs, 1))
    drawn = np.concatenate(
        [(change @ w.T) / (over @ w.T) for w in _resampled(units, draws)], axis=1
    )
    estimate = (change.sum(1) / over.sum(1))[:, None]
    away = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1).T - estimate
    tails = (1 + np.asarray(levels)) / 2
    stretch = t.ppf(tails, units - 1) * np.sqrt(units / (units - 1)) / norm.ppf((1 + LEVEL) / 2)
    return estimate + stretch[:, None, None] * away


def corrected_level(comparisons: int) -> float:
    """Bonferroni's: all of ``comparisons`` intervals hold their truths at once in 95 % of cases."""
    return 1 - (1 - LEVEL) / max(comparisons, 1)


def classify(low: float, high: float, margin: float) -> Finding:
    """What an interval of a change, positive for better, says beside a ``margin`` that is not felt.

    Kept: all of it lies within the margin, on whichever side of zero. Gained or forgotten: all of
    it lies on one side of zero, and not within the margin. Otherwise the examples are too few.
    """
    if -margin <= low and high <= margin:
        return "kept"
    if low > 0:
        return "gained"
    return "forgotten" if high < 0 else "not told apart"


def _resampled(units: int, draws: int) -> Iterator[Float[np.ndarray, "draws units"]]:
    """How often each draw takes each unit."""
    rng = np.random.default_rng(0)
    size = max(_CHUNK // units, 1)
    for done in range(0, draws, size):
        yield _counts(rng, units, min(size, draws - done))


def _counts(rng: np.random.Generator, units: int, draws: int) -> Float[np.ndarray, "draws units"]:
    taken = rng.integers(units, size=(draws, units)) + units * np.arange(draws)[:, None]
    return np.bincount(taken.ravel(), minlength=draws * units).reshape(draws, units).astype(float)
