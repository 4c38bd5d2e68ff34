"""Runs of one learning rate: a law of the ratio, and where the original loss meets its bound."""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.bands import quantiles
from llama_cpt.mixture_law.goal import Bound, Goal
from llama_cpt.mixture_law.law import RatioOnly
from llama_cpt.mixture_law.points import Points

POWERS = np.geomspace(0.02, 3, 40)
RATES = np.concatenate([-np.geomspace(30, 0.1, 30), np.geomspace(0.1, 10, 15)])
CURVE = 101
DRAWS = 300


@dataclass(frozen=True)
class RatioForm:
    """loss = c + k * phi(own share): c and k by least squares, the shape of phi by trial."""

    name: str
    shapes: np.ndarray
    """(shapes, 1), one row for a form without a shape."""

    def phi(self, share: np.ndarray) -> np.ndarray:
        """(shapes, settings)."""
        if self.name.startswith("power"):
            return share**self.shapes
        return np.exp(self.shapes * share) if self.name.startswith("exp") else share[None]

    @property
    def parameters(self) -> int:
        """Fitted numbers."""
        return 2 + (len(self.shapes) > 1)

    def predict(self, share: np.ndarray, losses: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Losses (fits, wanted) of fits to ``losses`` (fits, settings)."""
        phi = self.phi(share)
        middle = phi.mean(axis=1, keepdims=True)
        off = phi - middle
        power = np.maximum(np.sum(off**2, axis=1), 1e-30)
        mean = losses.mean(axis=1)
        slope = (losses @ off.T) / power
        missed = np.sum((losses - mean[:, None]) ** 2, axis=1)[:, None] - slope**2 * power
        best = np.argmin(missed, axis=1)
        rows = np.arange(len(losses))
        return mean[:, None] + slope[rows, best][:, None] * (self.phi(wanted) - middle)[best]


LINE = RatioForm("line", np.ones((1, 1)))
RATIO_FORMS = (
    LINE,
    RatioForm("power of the share, CMR, arXiv 2407.17467", POWERS[:, None]),
    RatioForm("exponential of the share, Data Mixing Laws, arXiv 2403.16952", RATES[:, None]),
)


def fit_ratio(points: Points, goal: Goal, rng: np.random.Generator) -> RatioOnly:
    """Of runs at one learning rate, one size and one budget, with at least two ratios.

    Two ratios: a line, which nothing validates. More: the form with the least error on ratios left
    out, and a residual bootstrap for the interval.
    """
    form, error = _choose(points.almr, 1 - points.almr, points.original)
    other, _ = _choose(points.almr, points.almr, points.additional)
    validated = error is not None
    almr = np.linspace(points.almr.min(), points.almr.max(), CURVE)
    share = 1 - points.almr
    curve = form.predict(share, points.original[None], 1 - almr)[0]
    forgetting = goal.forgetting if isinstance(goal, Bound) else 0.0
    bound = (1 + forgetting) * float(np.median(points.base_original))
    critical = _crossing(almr, curve[None] - bound)[0]
    interval = None
    if validated and np.isfinite(critical):
        interval = _interval(form, points, almr, bound, rng)
    words = f"its base of {bound:.3f}" if not forgetting else f"its bound of {bound:.3f}"
    return RatioOnly(
        learning_rate=float(points.learning_rate[0]),
        critical=float(critical) if np.isfinite(critical) else None,
        interval=interval,
        finding=_finding(almr, curve, bound, words, validated),
        validated=validated,
        form=form.name,
        held_out=error,
        almr=almr,
        additional=other.predict(points.almr, points.additional[None], almr)[0],
        original=curve,
    )


def _choose(
    almr: np.ndarray, share: np.ndarray, losses: np.ndarray
) -> tuple[RatioForm, float | None]:
    ratios = np.unique(almr)
    if len(ratios) < 3:
        return LINE, None
    fitting = [form for form in RATIO_FORMS if form.parameters < len(ratios)]
    errors = []
    for form in fitting:
        missed = []
        for ratio in ratios:
            left = almr == ratio
            predicted = form.predict(share[~left], losses[None, ~left], share[left])[0]
            missed.extend(np.log(np.maximum(predicted, 1e-3) / losses[left]))
        errors.append(float(np.sqrt(np.mean(np.square(missed)))))
    best = int(np.argmin(errors))
    return fitting[best], errors[best]


def _crossing(almr: np.ndarray, above: np.ndarray) -> np.ndarray:
    """The first ALMR of each row at which it goes from 0 or less to more; NaN where none."""
    up = (above[:, :-1] <= 0) & (above[:, 1:] > 0)
    left = np.argmax(up, axis=1)[:, None]
    low, high = (np.take_along_axis(above, left + step, axis=1)[:, 0] for step in (0, 1))
    part = -low / np.where(high > low, high - low, 1.0)
    place = almr[left[:, 0]] + part * (almr[1] - almr[0])
    return np.where(up.any(axis=1), place, np.nan)


def _interval(
    form: RatioForm, points: Points, almr: np.ndarray, bound: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    """None where no degree of freedom is left; open ends are those of what was measured."""
    freedom = len(points) - form.parameters
    if freedom < 1:
        return None
    share = 1 - points.almr
    fitted = form.predict(share, points.original[None], share)[0]
    scale = np.sqrt(np.sum((points.original - fitted) ** 2) / rng.chisquare(freedom, (DRAWS, 1)))
    draws = fitted + scale * rng.standard_normal((DRAWS, len(points)))
    above = form.predict(share, draws, 1 - almr) - bound
    place = _crossing(almr, above)
    outside = np.where(above[:, 0] > 0, almr[0], almr[-1])
    low, high = quantiles(np.where(np.isfinite(place), place, outside))
    return float(low), float(high)


def _finding(almr: np.ndarray, curve: np.ndarray, bound: float, words: str, validated: bool) -> str:
    mark = "" if validated else " This is a line through two ratios, not validated."
    place = _crossing(almr, curve[None] - bound)[0]
    if np.isfinite(place):
        return f"The original loss meets {words} at ALMR {place:.3f}.{mark}"
    if curve[0] > bound:
        return (
            f"The original loss is above {words} at every measured ratio: "
            f"the critical ALMR is below {almr[0]:g}.{mark}"
        )
    return (
        f"The original loss stays below {words} at every measured ratio: "
        f"the critical ALMR is above {almr[-1]:g}.{mark}"
    )
