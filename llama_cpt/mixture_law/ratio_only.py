"""A law of the ratio alone, for runs of one learning rate, and the critical ratio at the bound."""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.intervals import quantiles
from llama_cpt.mixture_law.law import RatioOnly
from llama_cpt.mixture_law.objective import Bound, Objective
from llama_cpt.mixture_law.runs_table import RunsTable

# Shapes of phi are searched on a grid and c and k follow exactly: there are no local minima.
OFFSETS = np.geomspace(0.001, 0.3, 12)
POWERS = np.geomspace(0.05, 3, 20)


@dataclass(frozen=True)
class RatioForm:
    """loss = c + k phi(share): c and k by least squares for every shape of phi; the best shape."""

    name: str
    shapes: np.ndarray
    """Parameters of phi, (shapes, numbers); no numbers for a line."""

    @property
    def parameters(self) -> int:
        """Number of fitted parameters."""
        return 2 + self.shapes.shape[1]

    def phi(self, share: np.ndarray) -> np.ndarray:
        """Return phi, (shapes, settings)."""
        numbers = [column[:, None] for column in self.shapes.T]
        match numbers:
            case [rate]:
                return np.exp(rate * share)
            case [offset, power]:
                return (share + offset) ** -power
            case _:
                return share[None]

    def predict(self, share: np.ndarray, losses: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the losses (fits, targets) of fits to ``losses`` (fits, settings)."""
        phi = self.phi(share)
        middle = phi.mean(axis=1, keepdims=True)
        off = phi - middle
        # Simple regression in closed form, for every shape at once.
        power = np.maximum(np.sum(off**2, axis=1), 1e-30)
        mean = losses.mean(axis=1, keepdims=True)
        slope = (losses @ off.T) / power
        squares = np.sum((losses - mean) ** 2, axis=1, keepdims=True)
        best = np.argmin(squares - slope**2 * power, axis=1)
        best_slope = np.take_along_axis(slope, best[:, None], axis=1)
        return mean + best_slope * (self.phi(targets) - middle)[best]


@dataclass(frozen=True)
class PiecewiseLinear:
    """Straight lines between neighboring ratios: nothing is fitted, so there is no interval."""

    name: str = "piecewise linear between neighboring ratios"
    parameters: int = 2

    def predict(self, share: np.ndarray, losses: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the losses as in ``RatioForm.predict``."""
        ratios, position, counts = np.unique(share, return_inverse=True, return_counts=True)
        means = [np.bincount(position, row) / counts for row in losses]
        return np.array([np.interp(targets, ratios, mean) for mean in means])


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
"""Number of ratios on a curve."""
DRAWS = 400


def fit_ratio(runs: RunsTable, objective: Objective, rng: np.random.Generator) -> RatioOnly:
    """Return the law of runs at one learning rate, size and budget, with at least two ratios.

    Two ratios give a line, which is not validated. More give the form with the least error on
    held-out ratios, the outermost excepted, and an interval from a residual bootstrap.
    """
    form, error = _choose(runs.almr, 1 - runs.almr, runs.original)
    other, _ = _choose(runs.almr, runs.almr, runs.additional)
    almr = np.linspace(runs.almr.min(), runs.almr.max(), CURVE)
    curve = form.predict(1 - runs.almr, runs.original[None], 1 - almr)[0]
    forgetting = objective.forgetting if isinstance(objective, Bound) else 0.0
    bound = (1 + forgetting) * float(np.median(runs.base_original))
    critical = float(_crossing(almr, curve[None] - bound)[0])
    interval = None
    if isinstance(form, RatioForm) and error is not None and np.isfinite(critical):
        interval = _interval(form, runs, almr, bound, rng)
    reference = f"its {'bound' if forgetting else 'base'} of {bound:.4g}"
    finding = _finding(runs, bound, reference, critical)
    if error is None:
        finding += " This is a line through two ratios and is not validated."
    return RatioOnly(
        learning_rate=float(runs.learning_rate[0]),
        critical=critical if np.isfinite(critical) else None,
        interval=interval,
        finding=finding,
        validated=error is not None,
        form=form.name,
        held_out=error,
        almr=almr,
        additional=other.predict(runs.almr, runs.additional[None], almr)[0],
        original=curve,
    )


def _choose(
    almr: np.ndarray, share: np.ndarray, losses: np.ndarray
) -> tuple[RatioForm | PiecewiseLinear, float | None]:
    """Return the form with the smallest held-out error, and that error; None for two ratios."""
    ratios = np.unique(almr)
    if len(ratios) < 3:
        return LINE, None
    # A form with as many parameters as ratios leaves no ratio for a test.
    fitting = [form for form in RATIO_FORMS if form.parameters < len(ratios)]
    errors = []
    for form in fitting:
        relative = []
        # The outermost ratios could only be extrapolated to.
        for ratio in ratios[1:-1]:
            left = almr == ratio
            predicted = form.predict(share[~left], losses[None, ~left], share[left])[0]
            relative.extend(predicted / losses[left] - 1)
        errors.append(float(np.sqrt(np.mean(np.square(relative)))))
    best = int(np.argmin(errors))
    return fitting[best], errors[best]


def _crossing(almr: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Return the first ALMR of each row at which it turns positive; NaN if there is none."""
    up = (above[:, :-1] <= 0) & (above[:, 1:] > 0)
    left = np.argmax(up, axis=1)[:, None]
    low, high = (np.take_along_axis(above, left + step, axis=1)[:, 0] for step in (0, 1))
    part = -low / np.where(high > low, high - low, 1.0)
    position = almr[left[:, 0]] + part * (almr[1] - almr[0])
    return np.where(up.any(axis=1), position, np.nan)


def _interval(
    form: RatioForm, runs: RunsTable, almr: np.ndarray, bound: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    """Return the interval of the critical ratio; None without a degree of freedom."""
    freedom = len(runs) - form.parameters
    if freedom < 1:
        return None
    share = 1 - runs.almr
    fitted = form.predict(share, runs.original[None], share)[0]
    # The residual scale is uncertain for few runs: each draw has its own, as in ``fit.bootstrap``.
    scale = np.sqrt(np.sum((runs.original - fitted) ** 2) / rng.chisquare(freedom, (DRAWS, 1)))
    draws = fitted + scale * rng.standard_normal((DRAWS, len(runs)))
    above = form.predict(share, draws, 1 - almr) - bound
    position = _crossing(almr, above)
    # A draw without a crossing counts as the end of the measured range on its side of the bound.
    outside = np.where(above[:, 0] > 0, almr[0], almr[-1])
    low, high = quantiles(np.where(np.isfinite(position), position, outside))
    return float(low), float(high)


def _finding(runs: RunsTable, bound: float, reference: str, critical: float) -> str:
    if not np.isfinite(bound):
        return (
            "The table does not state the base's original loss, to which the losses would be "
            "compared."
        )
    above = runs.original > bound
    if np.isfinite(critical):
        return f"The original loss meets {reference} at ALMR {critical:.3f}."
    if above.all():
        return (
            f"The original loss is above {reference} at every measured ratio: "
            f"the critical ALMR is below {runs.almr.min():g}."
        )
    if not above.any():
        return (
            f"The original loss stays below {reference} at every measured ratio: "
            f"the critical ALMR is above {runs.almr.max():g}."
        )
    return (
        f"Some measured original losses are above {reference} and some below, "
        f"but the fitted curve does not cross it: there is no critical ALMR."
    )
