"""The law of a table of runs: a recommended ratio and learning rate, or the reasons for a refusal.

The field names of these dataclasses are the keys of ``law.json``.
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
    """Root mean square error of the log loss (about a relative error) on held-out runs."""

    ratio: float | None
    """One ratio held out at a time; None if the data has fewer than three."""
    learning_rate: float | None
    """One learning rate held out at a time; None if the data has fewer than three."""
    run: float
    """One run held out at a time."""
    size: float | None
    """The largest size, predicted from smaller ones."""
    inside: float
    """Held-out runs, and held-out ratios and rates except the outermost."""
    overall: float
    """Score by which forms are compared: ``inside``, with the size as one more fold if held out."""


@dataclass(frozen=True)
class FormFit:
    """One form, fitted to one group."""

    form: str
    source: str
    group: str
    parameters: Mapping[str, float]
    residual: float | None
    """Residual standard deviation of the log loss, for the remaining degrees of freedom."""
    held_out: HeldOut | None
    runs: int
    left_out: int
    """Runs at ALMR 0 or 1, at which the form is singular."""
    weight: float
    """Share of the bootstrap draws; 0 if held-out errors exclude the form."""
    chosen: bool
    refusal: str | None
    """The reason why the form could not be fitted."""


@dataclass(frozen=True)
class Recommendation:
    """The optimum of the objective, with 90 % confidence intervals."""

    almr: Interval
    learning_rate: Interval
    losses: Mapping[str, Interval]
    """Predicted losses by group; the intervals include the noise of a run."""
    base: Mapping[str, float]
    parameters: float
    tokens: float
    poor_fit: str | None
    """The reason why the recommendation is unreliable; None for a good fit."""
    extrapolation: str | None
    """How far the target is beyond the fitted sizes, and by how much the intervals are widened."""


@dataclass(frozen=True)
class Refusal:
    """The reasons why the data does not support a recommendation, one sentence each."""

    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.reasons)


@dataclass(frozen=True)
class OptimalRate:
    """The best learning rate of each ALMR: log(LR) = intercept + slope * log(ALMR / (1 - ALMR))."""

    slope: Interval
    intercept: Interval
    almr: np.ndarray
    learning_rate: Interval
    """Arrays with an entry for each of ``almr``: the law's own optima, not the line."""
    parameters: float


@dataclass(frozen=True)
class Pareto:
    """Settings that no other setting dominates, i.e. beats in both losses."""

    almr: np.ndarray
    learning_rate: np.ndarray
    additional: np.ndarray
    original: np.ndarray
    run: np.ndarray
    """Names of measured runs, "" for predictions."""


@dataclass(frozen=True)
class Exponent:
    """A power of the model size or of the tokens, either fitted or a prior."""

    of: str
    """"learning rate" or "almr odds"."""
    over: str
    """"parameters" or "tokens"."""
    power: Interval
    prior: str | None
    """The source of the prior; None if the power is fitted."""


@dataclass(frozen=True)
class SizeOptimum:
    """The optimum at one size: fitted, or extrapolated to the target."""

    parameters: float
    tokens: float
    almr: Interval
    learning_rate: Interval
    target: bool


@dataclass(frozen=True)
class Extrapolation:
    """The extrapolation from the fitted sizes to the target."""

    exponents: tuple[Exponent, ...]
    optima: tuple[SizeOptimum, ...]
    factor: float
    """Target size over the largest fitted size."""


@dataclass(frozen=True)
class NextRun:
    """A proposed run that would narrow the interval of the recommendation."""

    almr: float
    learning_rate: float
    remaining: float
    """Share of the optimum's variance that remains after this run and those before it."""


@dataclass(frozen=True)
class RatioOnly:
    """The law of the ratio alone, for runs of one learning rate."""

    learning_rate: float
    critical: float | None
    """ALMR at which the original loss meets its bound; None outside the measured range."""
    interval: tuple[float, float] | None
    """90 % interval of ``critical``; None for two ratios, or without a critical ratio."""
    finding: str
    """A sentence: the critical ratio, or a bound on it from one side."""
    validated: bool
    form: str
    held_out: float | None
    almr: np.ndarray
    """Ratios of the curves."""
    additional: np.ndarray
    original: np.ndarray


@dataclass(frozen=True)
class PairOptimum:
    """One pair's optimum, and its difference from the first pair's (0 for the first itself)."""

    pair: str
    almr: Interval | None
    learning_rate: Interval | None
    almr_difference: Interval | None
    decades_difference: Interval | None
    """Difference of log10 of the learning rate."""
    refusal: Refusal | None


@dataclass(frozen=True)
class Law:
    """All results of a table of runs for one objective."""

    objective: Objective
    runs: RunsTable
    """The fitted runs."""
    forms: tuple[FormFit, ...]
    """All forms for both groups."""
    noise: Mapping[str, float]
    """Standard deviation of the log loss over repeated runs, by group; empty without repeats."""
    recommendation: Recommendation | None
    """The optimum at the target, or at the largest fitted size; None if there is a refusal."""
    refusal: Refusal | None
    optimal_rate: OptimalRate | None
    predicted_front: Pareto | None
    measured_front: Pareto
    extrapolation: Extrapolation | None
    next_runs: tuple[NextRun, ...]
    ratio_only: RatioOnly | None
    pairs: tuple[PairOptimum, ...]
    """Optima by pair; empty for one pair. ``one_for_all`` summarizes them."""
    one_for_all: str | None
    notes: tuple[str, ...]
    surface: Surface | None
    """The fitted surfaces, for predictions; None if no form could be fitted."""

    def predict(
        self,
        almr: Number,
        learning_rate: Number,
        parameters: float | None = None,
        tokens: float | None = None,
    ) -> dict[str, Interval]:
        """Return the loss by group with its 90 % prediction interval; arrays broadcast.

        ``parameters`` and ``tokens`` default to those of the recommendation.
        """
        assert self.surface, "the law has no surface; see its refusal"
        return self.surface.predict(almr, learning_rate, parameters, tokens)

    def evaluate_objective(
        self,
        additional: Number,
        original: Number,
        parameters: float | None = None,
    ) -> Number:
        """Return the value of the objective at a size, by default that of the recommendation."""
        return self.objective.evaluate(additional, original, self.base(parameters)["original"])

    def base(self, parameters: float | None = None) -> dict[str, float]:
        """Return the losses before the first step by group, by default of the recommendation."""
        assert self.surface, "the law has no surface; see its runs"
        return self.surface.base(parameters)
