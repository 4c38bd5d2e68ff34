"""Objectives: functions of the two losses that a recommendation minimizes."""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.intervals import Number

PENALTY = 10.0
"""Cost of exceeding the bound, in units of the additional log loss per original log loss."""


@dataclass(frozen=True)
class Bound:
    """The lowest additional loss with the original loss at most (1 + forgetting) times its base."""

    forgetting: float = 0.03

    def evaluate(self, additional: Number, original: Number, base: float) -> Number:
        """Return log(additional) + PENALTY * max(0, log(original / bound))."""
        # A steep finite penalty, not infinity: a setting slightly above the bound still has a rank.
        above = np.log(np.asarray(original) / ((1 + self.forgetting) * base))
        return np.log(additional) + PENALTY * np.maximum(0.0, above)


@dataclass(frozen=True)
class Weights:
    """The lowest weighted sum of both losses."""

    additional: float = 1.0
    original: float = 1.0

    def evaluate(self, additional: Number, original: Number, base: float) -> Number:
        """Return the weighted sum; ``base`` is not used."""
        return self.additional * np.asarray(additional) + self.original * np.asarray(original)


Objective = Bound | Weights
