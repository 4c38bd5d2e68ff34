"""Runs of one learning rate: a law of the ratio, and where the original loss meets its bound."""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.intervals import quantiles
from llama_cpt.mixture_law.law import RatioOnly
from llama_cpt.mixture_law.objective import Bound, Objective
from llama_cpt.mixture_law.runs_table import RunsTable

OFFSETS = np.geomspace(0.001, 0.3, 12)
POWERS = np.geomspace(0.05, 3, 20)


@dataclass(frozen=True)
class RatioForm:
    """loss = c + k phi(share): c and k by least squares for every shape of phi, the best shape."""

    name: str
    shapes: np.ndarray
    """(shapes, numbers): none for a line."""

    @property
    def parameters(self) -> int:
        """Fitted numbers."""
        return 2 + self.shapes.shape[1]

    def phi(self, share: np.ndarray) -> np.ndarray:
        """(shapes, settings)."""
        numbers = [column[:, None] for column in self.shapes.T]
        match numbers:
            case [rate]:
                return np.exp(rate * share)
            case [offset, power]:
                return (share + offset) ** -power
            case _:
                return share[None]

    def predict(self, share: np.ndarray, losses: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Losses (fits, wanted) of fits to ``losses`` (fits, settings)."""
        phi = self.phi(share)
        middle = phi.mean(axis=1, keepdims=True)
        off = phi - middle
        power = np.maximum(np.sum(off**2, axis=1), 1e-30)
        mean = losses.mean(axis=1, keepdims=True)
        slope = (losses @ off.T) / power
        missed = np.sum((losses - mean) ** 2, axis=1, keepdims=True) - slope**2 * power
        best = np.argmin(missed, axis=1)
        steep = np.take_along_axis(slope, best[:, None], axis=1)
        return mean + steep * (self.phi(wanted) - middle)[best]


@dataclass(frozen=True)
class PiecewiseLinear:
    """Straight lines between neighbouring ratios: nothing is fitted, so there is no interval."""

    name: str = "lines between neighbouring ratios"
    parameters: int = 2

    def predict(self, share: np.ndarray, losses: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """As ``RatioForm.predict``."""
        ratios, place, counts = np.unique(share, return_inverse=True, return_counts=True)
        means = [np.bincount(place, row) / counts for row in losses]
        return np.array([np.interp(wanted, ratios, mean) for mean in means])


LINE = RatioForm("line", np.zeros((1, 0)))
RATES = np.concatenate([-np.geomspace(60, 0.1, 40), np.geomspace(0.1, 10, 15)])
RATIO_FORMS = (
    LINE,
    RatioForm("exponential of the share (Data Mixing Laws, arXiv 2403.16952)", RATES[:, None]),
    RatioForm(
        "power of the share with an offset (D-CPT law, arXiv 2406.01375)",
        np.stack(np.meshgrid(OFFSETS, POWERS), axis=-1).reshape(-1, 2),
    ),
    PiecewiseLinear(),
)


CURVE = 401
DRAWS = 400


def fit_ratio(points: RunsTable, goal: Objective, rng: np.random.Generator) -> RatioOnly:
    """Of runs at one learning rate, one size and one budget, with at least two ratios.

    Two ratios: a line, which nothing validates. More: the form with the least error on the ratios
    between the outermost, each left out in turn, and a residual bootstrap for the interval.
    """
    form, error = _choose(points.almr, 1 - points.almr, points.original)
    other, _ = _choose(points.almr, points.almr, points.additional)
    almr = np.linspace(points.almr.min(), points.almr.max(), CURVE)
    curve = form.predict(1 - points.almr, points.original[None], 1 - almr)[0]
    forgetting = goal.forgetting if isinstance(goal, Bound) else 0.0
    bound = (1 + forgetting) * float(np.median(points.base_original))
    critical = float(_crossing(almr, curve[None] - bound)[0])
    interval = None
    if isinstance(form, RatioForm) and error is not None and np.isfinite(critical):
        interval = _interval(form, points, almr, bound, rng)
    words = f"its {'bound' if forgetting else 'base'} of {bound:.4g}"
    finding = _finding(points, bound, words, critical)
    if error is None:
        finding += " This is a line through two ratios, not validated."
    return RatioOnly(
        learning_rate=float(points.learning_rate[0]),
        critical=critical if np.isfinite(critical) else None,
        interval=interval,
        finding=finding,
        validated=error is not None,
        form=form.name,
        held_out=error,
        almr=almr,
        additional=other.predict(points.almr, points.additional[None], almr)[0],
        original=curve,
    )


def _choose(
    almr: np.ndarray, share: np.ndarray, losses: np.ndarray
) -> tuple[RatioForm | PiecewiseLinear, float | None]:
    ratios = np.unique(almr)
    if len(ratios) < 3:
        return LINE, None
    fitting = [form for form in RATIO_FORMS if form.parameters < len(ratios)]
    errors = []
    for form in fitting:
        missed = []
        for ratio in ratios[1:-1]:
            left = almr == ratio
            predicted = form.predict(share[~left], losses[None, ~left], share[left])[0]
            missed.extend(predicted / losses[left] - 1)
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
    form: RatioForm, points: RunsTable, almr: np.ndarray, bound: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    """None where no degree of freedom is left; an end may be that of what was measured."""
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


def _finding(points: RunsTable, bound: float, words: str, critical: float) -> str:
    if not np.isfinite(bound):
        return (
            "The table does not state the base's original loss: there is nothing to compare with."
        )
    above = points.original > bound
    if np.isfinite(critical):
        return f"The original loss meets {words} at ALMR {critical:.3f}."
    if above.all():
        return (
            f"The original loss is above {words} at every measured ratio: "
            f"the critical ALMR is below {points.almr.min():g}."
        )
    if not above.any():
        return (
            f"The original loss stays below {words} at every measured ratio: "
            f"the critical ALMR is above {points.almr.max():g}."
        )
    return (
        f"Some measured original losses are above {words} and some below, "
        f"but the fitted curve does not cross it: no critical ALMR."
    )
