"""What is wanted of the two losses."""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.intervals import Number

PENALTY = 10.0
"""Loss of the additional language, in logs, that one of the original above its bound costs."""


@dataclass(frozen=True)
class Bound:
    """The lowest additional loss while the original is at most (1 + forgetting) times its base."""

    forgetting: float = 0.03

    def evaluate(self, additional: Number, original: Number, base: float) -> Number:
        """log(additional) + PENALTY * max(0, log(original / bound))."""
        above = np.log(np.asarray(original) / ((1 + self.forgetting) * base))
        return np.log(additional) + PENALTY * np.maximum(0.0, above)


@dataclass(frozen=True)
class Weights:
    """The lowest weighted sum of both losses."""

    additional: float = 1.0
    original: float = 1.0

    def evaluate(self, additional: Number, original: Number, base: float) -> Number:
        """The weighted sum; ``base`` plays no part."""
        return self.additional * np.asarray(additional) + self.original * np.asarray(original)


Objective = Bound | Weights
