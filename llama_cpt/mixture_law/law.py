"""What a table of runs says: a ratio and a learning rate with intervals, or why it says none."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.intervals import Interval, Number
from llama_cpt.mixture_law.objective import Objective
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.surface import Surface


@dataclass(frozen=True)
class HeldOut:
    """Root mean square error of the log loss (about a relative error) where runs were left out."""

    ratio: float | None
    """One ratio out at a time; None where the data has fewer than three."""
    learning_rate: float | None
    run: float
    """One run out at a time."""
    size: float | None
    """The largest size out, predicted from the smaller ones."""
    inside: float
    """Over the runs, and the ratios and rates that are not the outermost."""
    overall: float
    """What forms are compared by: ``inside``, and the size as one more fold where there is one."""


@dataclass(frozen=True)
class FormFit:
    """One form, fitted to one group."""

    form: str
    source: str
    group: str
    parameters: Mapping[str, float]
    residual: float | None
    """Of the log loss, for the degrees of freedom left."""
    held_out: HeldOut | None
    runs: int
    left_out: int
    """Runs at ALMR 0 or 1, where the form is singular."""
    weight: float
    """Share of the bootstrap draws: 0 where held-out error tells the form from the best."""
    chosen: bool
    refusal: str | None
    """Why it could not be fitted."""


@dataclass(frozen=True)
class Recommendation:
    """Where the goal is best met; all bands are of 90 %."""

    almr: Interval
    learning_rate: Interval
    losses: Mapping[str, Interval]
    """By group, the noise of a run included."""
    base: Mapping[str, float]
    parameters: float
    tokens: float
    poor_fit: str | None
    """Why it deserves little trust; None for a fit that is as good as its intervals say."""
    extrapolation: str | None
    """How far beyond the fitted sizes, and by how much the intervals are widened."""


@dataclass(frozen=True)
class Refusal:
    """Why the data carries no recommendation, in sentences."""

    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.reasons)


@dataclass(frozen=True)
class OptimalRate:
    """Best learning rate for each ALMR: log(LR) = intercept + slope * log(ALMR / (1 - ALMR))."""

    slope: Interval
    intercept: Interval
    almr: np.ndarray
    learning_rate: Interval
    """Arrays, an entry for each of ``almr``; not the line but the law's own best."""
    parameters: float


@dataclass(frozen=True)
class Pareto:
    """Settings of which none is better in both losses."""

    almr: np.ndarray
    learning_rate: np.ndarray
    additional: np.ndarray
    original: np.ndarray
    run: np.ndarray
    """Names where they are measured runs, "" where predicted."""


@dataclass(frozen=True)
class Exponent:
    """A power of the model's size or of the tokens: fitted, or a prior that is marked as one."""

    of: str
    """"learning rate", "almr odds"."""
    over: str
    """"parameters", "tokens"."""
    power: Interval
    prior: str | None
    """Its source; None when it is fitted."""


@dataclass(frozen=True)
class SizeOptimum:
    """The optimum at one size: fitted, or carried to the target."""

    parameters: float
    tokens: float
    almr: Interval
    learning_rate: Interval
    target: bool


@dataclass(frozen=True)
class Extrapolation:
    """From the fitted sizes to the target."""

    exponents: tuple[Exponent, ...]
    optima: tuple[SizeOptimum, ...]
    factor: float
    """Target over the largest fitted size."""


@dataclass(frozen=True)
class NextRun:
    """A run that would narrow the recommendation."""

    almr: float
    learning_rate: float
    remaining: float
    """Share of the optimum's variance that is left after this run and those before it."""


@dataclass(frozen=True)
class RatioOnly:
    """What one learning rate tells: a law of the ratio alone."""

    learning_rate: float
    critical: float | None
    """ALMR at which the original loss meets its bound; None outside of what was measured."""
    interval: tuple[float, float] | None
    """None for two ratios, or where there is no critical ratio."""
    finding: str
    """In words: the critical ratio, or the bound of which only one side is known."""
    validated: bool
    form: str
    held_out: float | None
    almr: np.ndarray
    """Of the curves."""
    additional: np.ndarray
    original: np.ndarray


@dataclass(frozen=True)
class PairOptimum:
    """One pair's optimum, and how far it is from the first pair's (0 for the first itself)."""

    pair: str
    almr: Interval | None
    learning_rate: Interval | None
    almr_difference: Interval | None
    decades_difference: Interval | None
    """Of the learning rate."""
    refusal: Refusal | None


@dataclass(frozen=True)
class Law:
    """Everything that a table of runs says about the goal."""

    objective: Objective
    runs: RunsTable
    """The runs that were fitted."""
    forms: tuple[FormFit, ...]
    """Every form for both groups."""
    noise: Mapping[str, float]
    """Standard deviation of the log loss over repeated runs, by group; empty without repeats."""
    recommendation: Recommendation | None
    """At the target where one is given, else at the largest fitted size; or there is a refusal."""
    refusal: Refusal | None
    optimal_rate: OptimalRate | None
    predicted_front: Pareto | None
    measured_front: Pareto
    extrapolation: Extrapolation | None
    next_runs: tuple[NextRun, ...]
    ratio_only: RatioOnly | None
    pairs: tuple[PairOptimum, ...]
    """Empty for one pair; ``one_for_all`` says what they mean together."""
    one_for_all: str | None
    notes: tuple[str, ...]
    surface: Surface | None
    """What predicts; None where no form could be fitted."""

    def predict(
        self,
        almr: Number,
        learning_rate: Number,
        parameters: float | None = None,
        tokens: float | None = None,
    ) -> dict[str, Interval]:
        """Loss by group with its band of 90 %, noise included; arrays broadcast.

        ``parameters`` and ``tokens`` are those of the recommendation unless given.
        """
        assert self.surface, "a law without a surface predicts nothing: see its refusal"
        return self.surface.predict(almr, learning_rate, parameters, tokens)

    def evaluate_objective(
        self,
        additional: Number,
        original: Number,
        parameters: float | None = None,
    ) -> Number:
        """What the goal minimises, of losses at a size (the recommendation's unless given)."""
        return self.objective.evaluate(additional, original, self.base(parameters)["original"])

    def base(self, parameters: float | None = None) -> dict[str, float]:
        """Losses before the first step, by group, at a size (the recommendation's unless given)."""
        assert self.surface, "a law without a surface has no bases: see its points"
        return self.surface.base(parameters)
