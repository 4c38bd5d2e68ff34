"""Fitted losses as functions of the settings, with their uncertainty."""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.bands import Band


@dataclass(frozen=True)
class Surface:
    """Both groups' fits and their bootstrap draws."""

    def predict(
        self,
        almr: np.ndarray | float,
        learning_rate: np.ndarray | float,
        parameters: float | None,
        tokens: float | None,
    ) -> dict[str, Band]:
        """Loss by group."""
        raise NotImplementedError

    def base(self, parameters: float | None) -> dict[str, float]:
        """Base loss by group."""
        raise NotImplementedError
