"""Fitted losses as functions of the settings, with their uncertainty."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.forms import Form
from llama_cpt.mixture_law.intervals import Interval, Number, quantiles
from llama_cpt.mixture_law.normalization import Normalization, Settings
from llama_cpt.mixture_law.table import GROUPS

CARRY = ("level", "rate_by_size", "tokens", "rate_by_tokens")
PRIOR = np.array([1.0, 0.713, 0.0, -0.307])
"""Where the data has one size or one budget: losses in proportion to the base's, and the learning
rate of the Step Law (arXiv 2503.04715), which is of runs from scratch."""
PRIOR_WIDTH = np.array([0.0, 0.713 / 1.645, 0.0, 0.307 / 1.645])
"""Standard deviations: of the rates, 90 % reach from no change to twice the change."""
FAR_RATE = 100.0
"""Log rates are cut here, far beyond any run, for forms that grow with their square."""
LEVEL_WIDTH = {"additional": 0.5, "original": 0.05}
"""Of the level. A shift of the original loss that keeps its size, not its share of the base, as
arXiv 2505.07796 finds, is within it; little is known of the additional one."""


@dataclass(frozen=True)
class SurfaceModel:
    """A form and which powers are fitted; a parameter vector holds the form's, then ``CARRY``."""

    form: Form
    free: np.ndarray
    """Mask over the parameter vector."""
    smallest_share: float
    """Where a singular form is asked about less, it answers for half of this."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return (*self.form.bounds, *CARRY)

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest values."""
        pairs = [*self.form.bounds.values(), (-5.0, 5.0), (-3.0, 3.0), (-3.0, 3.0), (-3.0, 3.0)]
        low, high = np.array(pairs).T
        return low, high

    def starts(self) -> np.ndarray:
        """Rows of parameters, the powers at their prior."""
        core = self.form.starts()
        return np.concatenate([core, np.broadcast_to(PRIOR, (len(core), len(PRIOR)))], axis=1)

    def value(self, theta: np.ndarray, at: Settings) -> np.ndarray:
        """Log loss over that of the base at the home size."""
        core, s, _, t, _ = self._split(theta)
        y = self.form.value(core, self._share(at), self._rate(theta, at))
        return y + s * at.level + t * at.tokens

    def jacobian(self, theta: np.ndarray, at: Settings) -> np.ndarray:
        """Derivatives of the value by all parameters, on the last axis."""
        rate = self._rate(theta, at)
        by_core, by_rate = self.form.partials(self._split(theta)[0], self._share(at), rate)
        carry = [at.level, by_rate * at.size, at.tokens, by_rate * at.tokens]
        return np.stack(np.broadcast_arrays(*by_core, *carry), axis=-1)

    def fits(self, at: Settings) -> np.ndarray:
        """Mask of the settings at which the form is defined."""
        return (at.share(self.form.group) > 0) | (not self.form.singular)

    def _share(self, at: Settings) -> np.ndarray:
        share = at.share(self.form.group)
        return np.maximum(share, self.smallest_share / 2) if self.form.singular else share

    def _rate(self, theta: np.ndarray, at: Settings) -> np.ndarray:
        _, _, by_size, _, by_tokens = self._split(theta)
        return np.clip(at.rate + by_size * at.size + by_tokens * at.tokens, -FAR_RATE, FAR_RATE)

    def _split(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        core = theta[..., : -len(CARRY)]
        return core, *np.moveaxis(theta[..., -len(CARRY) :], -1, 0)[..., None]


def make_model(form: Form, at: Settings, smallest_share: float) -> SurfaceModel:
    """Powers are fitted where the settings have at least two sizes, or two budgets."""
    sizes, budgets = (len(np.unique(np.round(v, 9))) > 1 for v in (at.size, at.tokens))
    free = [True] * len(form.bounds) + [sizes, sizes, budgets, budgets]
    return SurfaceModel(form, np.array(free), smallest_share)


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
