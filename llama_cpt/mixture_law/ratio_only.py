"""Fits of the losses as functions of the ratio only, for runs with one learning rate.

The results include the critical ratio, at which the original loss reaches its bound.
"""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.intervals import quantiles
from llama_cpt.mixture_law.law import RatioOnly
from llama_cpt.mixture_law.objective import Bound, Objective
from llama_cpt.mixture_law.runs_table import RunsTable

# The parameters of phi are searched on a grid, and c and k then follow in closed form, so the fit
# has no local minima.
OFFSETS = np.geomspace(0.001, 0.3, 12)
POWERS = np.geomspace(0.05, 3, 20)


@dataclass(frozen=True)
class RatioForm:
    """The functional form ``loss = c + k * phi(share)`` of the loss of one language group.

    ``share`` is the group's share of the training tokens. ``phi`` has 0, 1 or 2 parameters. A fit
    tries each candidate for these parameters in ``shapes``, computes c and k by least squares, and
    keeps the best candidate.
    """

    name: str
    shapes: np.ndarray
    """Candidate values of the parameters of phi, one row per candidate and one column per
    parameter.
    """

    @property
    def parameters(self) -> int:
        """Number of fitted parameters."""
        return 2 + self.shapes.shape[1]

    def phi(self, share: np.ndarray) -> np.ndarray:
        """Return phi for each candidate in ``shapes`` and each token share, (shapes, runs)."""
        numbers = [column[:, None] for column in self.shapes.T]
        match numbers:
            case [rate]:
                return np.exp(rate * share)
            case [offset, power]:
                return (share + offset) ** -power
            case _:
                return share[None]

    def predict(self, share: np.ndarray, losses: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return predictions (fits, targets) of fits to ``losses`` (fits, runs).

        ``share``, (runs), contains the token shares of the runs. ``targets``, (targets), contains
        the token shares at which losses are predicted.
        """
        phi = self.phi(share)
        middle = phi.mean(axis=1, keepdims=True)
        off = phi - middle
        # Simple linear regression in closed form, for all shapes and fits at once.
        power = np.maximum(np.sum(off**2, axis=1), 1e-30)
        mean = losses.mean(axis=1, keepdims=True)
        slope = (losses @ off.T) / power
        squares = np.sum((losses - mean) ** 2, axis=1, keepdims=True)
        best = np.argmin(squares - slope**2 * power, axis=1)
        best_slope = np.take_along_axis(slope, best[:, None], axis=1)
        return mean + best_slope * (self.phi(targets) - middle)[best]


@dataclass(frozen=True)
class PiecewiseLinear:
    """Linear interpolation between neighboring ratios.

    The curve passes through the mean loss at every ratio, so an interval of the critical ratio
    cannot be computed from its residuals.
    """

    name: str = "piecewise linear between neighboring ratios"
    parameters: int = 2
    """Nominal number of parameters: 2, so that at least three ratios are required."""

    def predict(self, share: np.ndarray, losses: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return predictions (fits, targets), as in ``RatioForm.predict``."""
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
"""Number of ratios at which the fitted curves are evaluated."""
DRAWS = 400
"""Number of bootstrap draws."""


def fit_ratio(runs: RunsTable, objective: Objective, rng: np.random.Generator) -> RatioOnly:
    """Return the law of runs with one learning rate, model size and token budget.

    For two ratios, the law is a line, which cannot be validated. For at least three ratios, the law
    is the form with the smallest error for held-out ratios, and the interval of the critical ratio
    is computed by a parametric bootstrap.
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
    reference = f"{'its bound' if forgetting else 'the base-model loss'} of {bound:.4g}"
    finding = _finding(runs, bound, reference, critical)
    if error is None:
        finding += " The fit is a line through two ratios and is not validated."
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
    """Return the form with the smallest held-out error, and this error.

    For two ratios, the form is a line and the error is None. ``share`` and ``losses`` are the token
    shares and the losses of one group.
    """
    ratios = np.unique(almr)
    if len(ratios) < 3:
        return LINE, None
    # A form with as many parameters as there are ratios leaves no ratio to hold out.
    fitting = [form for form in RATIO_FORMS if form.parameters < len(ratios)]
    errors = []
    for form in fitting:
        relative = []
        # The outermost ratios are not held out, because their prediction is an extrapolation.
        for ratio in ratios[1:-1]:
            left = almr == ratio
            predicted = form.predict(share[~left], losses[None, ~left], share[left])[0]
            relative.extend(predicted / losses[left] - 1)
        errors.append(float(np.sqrt(np.mean(np.square(relative)))))
    best = int(np.argmin(errors))
    return fitting[best], errors[best]


def _crossing(almr: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Return the first ALMR at which each row of ``above`` changes from negative to positive.

    The shape of ``above`` is (rows, ratios). The result is NaN for a row without that change.
    """
    up = (above[:, :-1] <= 0) & (above[:, 1:] > 0)
    left = np.argmax(up, axis=1)[:, None]
    low, high = (np.take_along_axis(above, left + step, axis=1)[:, 0] for step in (0, 1))
    part = -low / np.where(high > low, high - low, 1.0)
    position = almr[left[:, 0]] + part * (almr[1] - almr[0])
    return np.where(up.any(axis=1), position, np.nan)


def _interval(
    form: RatioForm, runs: RunsTable, almr: np.ndarray, bound: float, rng: np.random.Generator
) -> tuple[float, float] | None:
    """Return the 90 % interval of the critical ratio; None if no degrees of freedom remain."""
    freedom = len(runs) - form.parameters
    if freedom < 1:
        return None
    share = 1 - runs.almr
    fitted = form.predict(share, runs.original[None], share)[0]
    # The residual scale is uncertain for few runs, so every draw has its own (``fit.bootstrap``).
    scale = np.sqrt(np.sum((runs.original - fitted) ** 2) / rng.chisquare(freedom, (DRAWS, 1)))
    draws = fitted + scale * rng.standard_normal((DRAWS, len(runs)))
    above = form.predict(share, draws, 1 - almr) - bound
    position = _crossing(almr, above)
    # A draw without a crossing counts as the lowest or the highest ratio of the runs.
    outside = np.where(above[:, 0] > 0, almr[0], almr[-1])
    low, high = quantiles(np.where(np.isfinite(position), position, outside))
    return float(low), float(high)


def _finding(runs: RunsTable, bound: float, reference: str, critical: float) -> str:
    """Return a sentence on the critical ratio; ``reference`` is the bound as a noun phrase."""
    if not np.isfinite(bound):
        return (
            "The table does not state the original loss of the base model, so there is no critical "
            "ALMR."
        )
    above = runs.original > bound
    if np.isfinite(critical):
        return f"The original loss reaches {reference} at ALMR {critical:.3f}."
    if above.all():
        return (
            f"The original loss is above {reference} at every ratio in the table, "
            f"so the critical ALMR is below {runs.almr.min():g}."
        )
    if not above.any():
        return (
            f"The original loss is at most {reference} at every ratio in the table, "
            f"so the critical ALMR is above {runs.almr.max():g}."
        )
    return (
        f"The original loss is above {reference} in some runs and below it in others, "
        f"but the fitted curve does not cross it, so there is no critical ALMR."
    )
