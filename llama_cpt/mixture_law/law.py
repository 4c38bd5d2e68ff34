"""Data classes of a mixture law: fits, recommendation or refusal, Pareto fronts, extrapolation.

The field names are the keys of ``law.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.intervals import Interval, Number
from llama_cpt.mixture_law.objective import Objective
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.surface import Surface


@dataclass(frozen=True)
class HeldOut:
    """Cross-validation errors of a form: root mean square errors of the log loss.

    An error of the log loss is approximately a relative error of the loss.
    """

    ratio: float | None
    """Error for held-out ratios, each held out in turn; None for fewer than three ratios."""
    learning_rate: float | None
    """Error for held-out learning rates, each held out in turn; None for fewer than three rates."""
    run: float
    """Error for held-out runs, each held out in turn."""
    size: float | None
    """Error for the largest model size, predicted from smaller sizes.

    None if the smaller sizes have too few runs.
    """
    inside: float
    """Error for held-out runs, ratios and rates, except the outermost ratios and rates."""
    overall: float
    """Score by which forms are compared.

    The score is ``inside`` or, if ``size`` is not None, a weighted geometric mean of ``inside`` and
    ``size``.
    """


@dataclass(frozen=True)
class FormFit:
    """The fit of one form to the losses of one group."""

    form: str
    source: str
    """Equation or publication of the form."""
    group: str
    parameters: Mapping[str, float]
    """Fitted parameters by name; empty if the form could not be fitted."""
    residual: float | None
    """Residual standard error of the log loss; None if the form could not be fitted."""
    held_out: HeldOut | None
    """Cross-validation errors; None if the form could not be fitted."""
    runs: int
    """Number of fitted runs."""
    left_out: int
    """Number of runs excluded from the fit because the form is undefined at their ALMR."""
    weight: float
    """Share of the bootstrap draws that use this form; 0 for a form with a large held-out error."""
    chosen: bool
    """Whether the form has the smallest ``held_out.overall`` of all forms for its group."""
    refusal: str | None
    """The reason why the form could not be fitted, or None."""


@dataclass(frozen=True)
class Recommendation:
    """The optimum of the objective at the target, with 90 % intervals."""

    almr: Interval
    learning_rate: Interval
    losses: Mapping[str, Interval]
    """Predicted losses by group. The prediction intervals include the noise of a run."""
    base: Mapping[str, float]
    """Losses of the base model by language group."""
    parameters: float
    """Model size of the target."""
    tokens: float
    """Token budget of the target."""
    poor_fit: str | None
    """The reason why the recommendation is unreliable; None if the fit passes the checks."""
    extrapolation: str | None
    """A warning if the target is far beyond the fitted runs, else None.

    The limit is 10 times the largest fitted model size or token budget.
    """


@dataclass(frozen=True)
class Refusal:
    """The reasons why the data does not support a recommendation."""

    reasons: tuple[str, ...]
    """One sentence per reason."""

    def __str__(self) -> str:
        return " ".join(self.reasons)


@dataclass(frozen=True)
class OptimalRate:
    """The optimal learning rate LR for each ALMR, and a line fitted to it.

    The line is log(LR) = intercept + slope * log(ALMR / (1 - ALMR)).
    """

    slope: Interval
    intercept: Interval
    almr: np.ndarray
    """ALMR of each entry of ``learning_rate``."""
    learning_rate: Interval
    """Optimal learning rate at each entry of ``almr``. The line is fitted to these rates."""
    parameters: float
    """Model size at which these learning rates are optimal."""


@dataclass(frozen=True)
class Pareto:
    """A Pareto front: settings for which no other setting has lower losses for both groups."""

    almr: np.ndarray
    learning_rate: np.ndarray
    additional: np.ndarray
    """Loss of the additional group for each setting."""
    original: np.ndarray
    """Loss of the original group for each setting."""
    run: np.ndarray
    """Name of the run with each setting; "" for predictions."""


@dataclass(frozen=True)
class Exponent:
    """An exponent of the power law by which the optimum scales with model size or tokens."""

    of: str
    """The scaled quantity: "learning rate" or "almr odds", which is ALMR / (1 - ALMR)."""
    over: str
    """The scaling variable: "parameters" or "tokens"."""
    power: Interval
    """The exponent."""
    prior: str | None
    """Description of the prior; None if the exponent is fitted."""


@dataclass(frozen=True)
class SizeOptimum:
    """The optimum at one model size."""

    parameters: float
    tokens: float
    almr: Interval
    learning_rate: Interval
    target: bool
    """True for the optimum at the target; False for an optimum at a fitted size."""


@dataclass(frozen=True)
class Extrapolation:
    """The power laws of the optimum, and the optima at the fitted sizes and at the target."""

    exponents: tuple[Exponent, ...]
    optima: tuple[SizeOptimum, ...]
    """Optima at the fitted sizes, followed by the optimum at the target if there is a target."""
    factor: float
    """Target size divided by the largest fitted size."""


@dataclass(frozen=True)
class NextRun:
    """A proposed run that would reduce the uncertainty of the recommendation."""

    almr: float
    learning_rate: float
    remaining: float
    """Share of the optimum's variance that remains after this run and all runs listed before it."""


@dataclass(frozen=True)
class RatioOnly:
    """Losses as functions of the ratio only, fitted to runs with one learning rate."""

    learning_rate: float
    critical: float | None
    """ALMR at which the fitted original loss reaches its bound; None if there is no such ALMR."""
    interval: tuple[float, float] | None
    """90 % interval of ``critical``; None if the data does not determine it."""
    finding: str
    """A sentence with the critical ratio, or with a lower or upper limit for it."""
    validated: bool
    """Whether the form was tested on held-out ratios."""
    form: str
    held_out: float | None
    """Root mean square relative error for held-out ratios; None if ``validated`` is false."""
    almr: np.ndarray
    """Ratios of the fitted curves."""
    additional: np.ndarray
    """Fitted loss of the additional group at each entry of ``almr``."""
    original: np.ndarray
    """Fitted loss of the original group at each entry of ``almr``."""


@dataclass(frozen=True)
class PairOptimum:
    """The optimum of one language pair, and its difference from the optimum of the first pair."""

    pair: str
    almr: Interval | None
    learning_rate: Interval | None
    almr_difference: Interval | None
    """Optimal ALMR of this pair minus the optimal ALMR of the first pair."""
    decades_difference: Interval | None
    """log10 of the ratio of this pair's optimal learning rate to that of the first pair."""
    refusal: Refusal | None
    """The reasons why the pair has no optimum, or None if it has an optimum.

    If there are reasons, all fields except ``pair`` and ``refusal`` are None.
    """


@dataclass(frozen=True)
class Law:
    """All results of fitting a table of runs for one objective."""

    objective: Objective
    runs: RunsTable
    """The fitted runs."""
    forms: tuple[FormFit, ...]
    """The fits of all forms to both groups."""
    noise: Mapping[str, float]
    """Standard deviation of the log loss of repeated runs, by group; empty without repeats."""
    recommendation: Recommendation | None
    """The optimum at the target; None if the data do not support one (see ``refusal``)."""
    refusal: Refusal | None
    """The reasons why there is no recommendation; None if there is a recommendation."""
    optimal_rate: OptimalRate | None
    predicted_front: Pareto | None
    """Pareto front of the predictions at the reference size and budget."""
    measured_front: Pareto
    """Pareto front of the runs at the reference size and budget."""
    extrapolation: Extrapolation | None
    next_runs: tuple[NextRun, ...]
    """Proposed runs, the most informative first."""
    ratio_only: RatioOnly | None
    """The losses as functions of the ratio, if all runs have one learning rate; otherwise None."""
    pairs: tuple[PairOptimum, ...]
    """Optima of the language pairs; empty if the table has one pair."""
    one_for_all: str | None
    """A sentence on whether all language pairs have the same optimum; None for one pair."""
    notes: tuple[str, ...]
    """Limitations of the fit, one sentence each."""
    surface: Surface | None
    """The fitted loss surfaces; None if no form could be fitted."""

    def predict(
        self,
        almr: Number,
        learning_rate: Number,
        parameters: float | None = None,
        tokens: float | None = None,
    ) -> dict[str, Interval]:
        """Return the predicted loss of a run by language group, with its 90 % prediction interval.

        ``almr`` and ``learning_rate`` can be arrays that broadcast. The defaults of ``parameters``
        and ``tokens`` are the target's model size and token budget. The law must have a
        ``surface``.
        """
        assert self.surface, "the law has no surface; its refusal states the reason"
        return self.surface.predict(almr, learning_rate, parameters, tokens)

    def evaluate_objective(
        self,
        additional: Number,
        original: Number,
        parameters: float | None = None,
    ) -> Number:
        """Return the objective for given losses of both groups.

        If the objective is a ``Bound``, it also depends on the original loss of the base model with
        ``parameters`` parameters, by default the target's model size. The law must have a
        ``surface``.
        """
        return self.objective.evaluate(additional, original, self.base(parameters)["original"])

    def base(self, parameters: float | None = None) -> dict[str, float]:
        """Return the losses of the base model by language group.

        The default of ``parameters`` is the target's model size. The law must have a ``surface``.
        """
        assert self.surface, "the law has no surface; its refusal states the reason"
        return self.surface.base(parameters)
