"""Fitted losses as functions of the settings, with their uncertainty."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.intervals import Interval, Number, quantiles
from llama_cpt.mixture_law.normalization import Normalization, Settings
from llama_cpt.mixture_law.runs_table import GROUPS
from llama_cpt.mixture_law.surface_model import SurfaceModel

CHUNK = 2000
"""Settings predicted at a time: every draw answers for each of them."""
FAR = 10.0
"""Times the largest fitted size, beyond which a prediction is an extrapolation."""
LARGEST_LOG = 300.0
"""Logarithms are cut here: what a target that no data reaches asks for is still a number."""
TWO_SIDED = 1.645
"""Standard deviations of 90 %."""


def widening(grown: Number) -> Number:
    """Of intervals, ``grown`` being the log of a size or budget over the largest fitted one."""
    return np.maximum(1.0, grown / np.log(FAR))


@dataclass(frozen=True)
class GroupSurface:
    """One group's chosen fit, and draws from all forms that held-out error cannot tell from it."""

    model: SurfaceModel
    theta: np.ndarray
    draws: tuple[tuple[SurfaceModel, np.ndarray, np.ndarray], ...]
    """Of each pooled form: the model, its parameters, and which of the draws they are."""
    noise: float
    """Standard deviation of a run's log loss."""
    size_error: float
    """Held-out error of the largest size's log loss, over the log of the step that was left out."""

    def center(self, at: Settings, shift: np.ndarray | float = 0.0) -> np.ndarray:
        """Log loss over that of the home base, by the chosen fit, with rates moved by ``shift``."""
        return self.model.value(self.theta, at._replace(rate=at.rate + shift))

    def spread(self, at: Settings, shift: np.ndarray | None = None) -> np.ndarray:
        """The same by every draw: (draws, settings); ``shift`` has an entry a draw."""
        count = sum(len(rows) for _, _, rows in self.draws)
        values = np.empty((count, len(at.almr)))
        for model, thetas, rows in self.draws:
            moved = at if shift is None else at._replace(rate=at.rate + shift[rows, None])
            values[rows] = model.value(thetas, moved)
        return values


@dataclass(frozen=True)
class Surface:
    """Both groups, and the place that is meant where none is named."""

    normalization: Normalization
    groups: Mapping[str, GroupSurface]
    parameters: float
    tokens: float
    largest: float
    """Of the fitted sizes."""
    longest: float
    """Of the fitted budgets."""
    draws: int

    def predict(
        self,
        almr: Number,
        learning_rate: Number,
        parameters: float | None = None,
        tokens: float | None = None,
    ) -> dict[str, Interval]:
        """Loss by group with the band of a run.

        In quadrature, of the log loss: the fit's interval (widened beyond 10 times what was
        fitted), 1.645 times the run's noise, and beyond the largest fitted size N also

            1.645 * (held-out size error) * log(size / N) / log(N / next smaller fitted size).
        """
        values = (almr, learning_rate, parameters or self.parameters, tokens or self.tokens)
        shape = np.broadcast_shapes(*map(np.shape, values))
        flat = [np.broadcast_to(value, shape).ravel() for value in values]
        at = self.normalization.settings(*flat)
        parts = [
            at.where(np.arange(start, min(start + CHUNK, len(at.almr))))
            for start in range(0, len(at.almr), CHUNK)
        ]
        found = {}
        for group in GROUPS:
            logs = np.concatenate([self._log_band(group, part) for part in parts], axis=1)
            scale = self.normalization.base(self.normalization.reference_parameters)[group]
            logs = np.clip(logs, -LARGEST_LOG, LARGEST_LOG)
            found[group] = Interval(*(scale * np.exp(log).reshape(shape)[()] for log in logs))
        return found

    def base(self, parameters: float | None = None) -> dict[str, float]:
        """Base loss by group."""
        return self.normalization.base(parameters or self.parameters)

    def _log_band(self, group: str, at: Settings) -> np.ndarray:
        surface = self.groups[group]
        centre = surface.center(at)
        low, high = quantiles(surface.spread(at))
        grown = at.size - np.log(self.largest / self.normalization.reference_parameters)
        carried = surface.size_error * np.maximum(0, grown)
        noise = TWO_SIDED * np.hypot(surface.noise, carried)
        longer = at.tokens - np.log(self.longest / self.normalization.reference_tokens)
        wide = widening(grown) * widening(longer)
        down = np.hypot(wide * np.maximum(0, centre - low), noise)
        up = np.hypot(wide * np.maximum(0, high - centre), noise)
        return np.stack([centre, centre - down, centre + up])
