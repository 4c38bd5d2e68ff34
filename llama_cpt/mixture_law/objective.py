"""Objectives to minimize, as functions of the additional and the original loss."""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.intervals import Number

PENALTY = 10.0
"""Weight of the term log(original loss / bound) in ``Bound.evaluate``."""


@dataclass(frozen=True)
class Bound:
    """The objective of minimizing the additional loss subject to a bound on the original loss.

    The bound is (1 + forgetting) times the original loss of the base model.
    """

    forgetting: float = 0.03
    """Largest acceptable relative increase of the original loss."""

    def evaluate(self, additional: Number, original: Number, base: float) -> Number:
        """Return log(additional) + PENALTY * max(0, log(original / bound)).

        ``base`` is the original loss of the base model.
        """
        # The penalty is steep but finite, so that settings above the bound can still be ranked.
        above = np.log(np.asarray(original) / ((1 + self.forgetting) * base))
        return np.log(additional) + PENALTY * np.maximum(0.0, above)


@dataclass(frozen=True)
class Weights:
    """The objective of minimizing a weighted sum of the additional and the original loss."""

    additional: float = 1.0
    original: float = 1.0

    def evaluate(self, additional: Number, original: Number, base: float) -> Number:
        """Return the weighted sum of the losses; ``base`` is ignored."""
        return self.additional * np.asarray(additional) + self.original * np.asarray(original)


Objective = Bound | Weights
