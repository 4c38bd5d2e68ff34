"""Loss surfaces: a form with its dependence on size and tokens, and fits with their uncertainty."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.forms import Form
from llama_cpt.mixture_law.intervals import Interval, Number, quantiles
from llama_cpt.mixture_law.normalization import Normalization, Settings
from llama_cpt.mixture_law.table import GROUPS

POWERS = ("level", "rate_by_size", "tokens", "rate_by_tokens")
"""Parameters that every form shares: s, a, t and b of ``SurfaceModel``."""
PRIOR = np.array([1.0, 0.713, 0.0, -0.307])
"""Values of ``POWERS`` for data of one size or one budget. Losses are proportional to the base's;
the best learning rate follows the Step Law, N^-0.713 D^0.307 (arXiv 2503.04715), which was
measured on runs from scratch."""
PRIOR_WIDTH = np.array([0.0, 0.713 / 1.645, 0.0, 0.307 / 1.645])
"""Standard deviations of ``PRIOR``: 90 % of rates lie between no change and twice the change."""
FAR_RATE = 100.0
"""Largest |log rate|, far beyond any run: some forms grow with its square."""
LEVEL_WIDTH = {"additional": 0.5, "original": 0.05}
"""Standard deviation of the level's prior by group. An original loss that increases by a constant,
as in arXiv 2505.07796, instead of by a share of the base is within it; little is known about
the additional loss."""


@dataclass(frozen=True)
class SurfaceModel:
    """A form over all settings; every form depends on size and tokens in the same way.

        log loss = form(share, rate + a size + b tokens) + s level + t tokens

    in the logarithms of ``Settings``. A power of the size, a, thus moves the best learning rate. A
    power of the base's original loss, s, moves the level: that loss falls with size like the whole
    of A / N^alpha, and it is known for the target as well. A parameter vector holds the form's
    parameters, then ``POWERS``.
    """

    form: Form
    free: np.ndarray
    """Mask of the fitted entries of the parameter vector."""
    smallest_share: float
    """A singular form is evaluated at no less than half of this share."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return (*self.form.bounds, *POWERS)

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest values of the parameters."""
        # The last four bounds are those of ``POWERS``, far beyond published exponents.
        pairs = [*self.form.bounds.values(), (-5.0, 5.0), (-3.0, 3.0), (-3.0, 3.0), (-3.0, 3.0)]
        low, high = np.array(pairs).T
        return low, high

    def starts(self) -> np.ndarray:
        """Return the form's starting points with the powers at their prior, one per row."""
        core = self.form.starts()
        return np.concatenate([core, np.broadcast_to(PRIOR, (len(core), len(PRIOR)))], axis=1)

    def value(self, theta: np.ndarray, at: Settings) -> np.ndarray:
        """Return log(loss / loss of the base at the reference size)."""
        core, s, _, t, _ = self._split(theta)
        y = self.form.value(core, self._share(at), self._rate(theta, at))
        return y + s * at.level + t * at.tokens

    def jacobian(self, theta: np.ndarray, at: Settings) -> np.ndarray:
        """Return the derivatives with respect to all parameters, on the last axis."""
        rate = self._rate(theta, at)
        by_core, by_rate = self.form.partials(self._split(theta)[0], self._share(at), rate)
        # The powers of size and tokens act through the rate, hence the chain rule with its
        # derivative.
        by_powers = [at.level, by_rate * at.size, at.tokens, by_rate * at.tokens]
        return np.stack(np.broadcast_arrays(*by_core, *by_powers), axis=-1)

    def fits(self, at: Settings) -> np.ndarray:
        """Return the mask of the settings at which the form is defined."""
        return (at.share(self.form.group) > 0) | (not self.form.singular)

    def _share(self, at: Settings) -> np.ndarray:
        # log(0) is not defined: the form is still scored on such runs, at half the smallest share.
        share = at.share(self.form.group)
        return np.maximum(share, self.smallest_share / 2) if self.form.singular else share

    def _rate(self, theta: np.ndarray, at: Settings) -> np.ndarray:
        _, _, by_size, _, by_tokens = self._split(theta)
        # A draw from a wide prior can move a remote target by hundreds of e-folds, whose square
        # overflows.
        return np.clip(at.rate + by_size * at.size + by_tokens * at.tokens, -FAR_RATE, FAR_RATE)

    def _split(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        core = theta[..., : -len(POWERS)]
        return core, *np.moveaxis(theta[..., -len(POWERS) :], -1, 0)[..., None]


def make_model(form: Form, at: Settings, smallest_share: float) -> SurfaceModel:
    """Return a model whose powers are free if the settings have two sizes, or two budgets."""
    # Rounding merges values that differ by floating-point errors only.
    sizes, budgets = (len(np.unique(np.round(v, 9))) > 1 for v in (at.size, at.tokens))
    free = [True] * len(form.bounds) + [sizes, sizes, budgets, budgets]
    return SurfaceModel(form, np.array(free), smallest_share)


CHUNK = 2000
"""Settings predicted at a time, for all draws at once; bounds the memory."""
FAR = 10.0
"""Factor over the largest fitted size or budget beyond which intervals are widened."""
LARGEST_LOG = 300.0
"""Largest |log loss| and |log rate|: predictions for remote targets stay finite numbers."""
TWO_SIDED = 1.645
"""Half width of a normal distribution's 90 % interval, in standard deviations."""


def widening(grown: Number) -> Number:
    """Return the factor by which intervals are widened.

    ``grown`` is the log of a size or budget over the largest fitted one.
    """
    return np.maximum(1.0, grown / np.log(FAR))


@dataclass(frozen=True)
class GroupSurface:
    """One group's selected fit, with draws from all forms that held-out errors do not exclude."""

    model: SurfaceModel
    theta: np.ndarray
    draws: tuple[tuple[SurfaceModel, np.ndarray, np.ndarray], ...]
    """The model of each pooled form, its parameter vectors, and the indices of its draws."""
    noise: float
    """Standard deviation of a run's log loss."""
    size_error: float
    """Held-out error of the log loss at the largest size, per unit of log size."""

    def center(self, at: Settings, shift: np.ndarray | float = 0.0) -> np.ndarray:
        """Return the selected fit's log(loss / reference base loss), rates moved by ``shift``."""
        return self.model.value(self.theta, at._replace(rate=at.rate + shift))

    def spread(self, at: Settings, shift: np.ndarray | None = None) -> np.ndarray:
        """Return the same for every draw, (draws, settings); ``shift`` has one entry per draw."""
        # Draws of different forms are interleaved: row i of every result is the same draw.
        count = sum(len(rows) for _, _, rows in self.draws)
        values = np.empty((count, len(at.almr)))
        for model, thetas, rows in self.draws:
            moved = at if shift is None else at._replace(rate=at.rate + shift[rows, None])
            values[rows] = model.value(thetas, moved)
        return values


@dataclass(frozen=True)
class Surface:
    """Surfaces of both groups, with the size and budget of a prediction that names none."""

    normalization: Normalization
    groups: Mapping[str, GroupSurface]
    parameters: float
    tokens: float
    largest: float
    """The largest fitted size."""
    longest: float
    """The largest fitted budget."""
    draws: int

    def predict(
        self,
        almr: Number,
        learning_rate: Number,
        parameters: float | None = None,
        tokens: float | None = None,
    ) -> dict[str, Interval]:
        """Return the loss of one run by group, with a 90 % prediction interval.

        The interval adds in quadrature, for the log loss: the fit's interval (widened beyond 10
        times the fitted range), 1.645 times the run's noise, and beyond the largest fitted size N
        also

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
            logs = np.concatenate([self._log_interval(group, part) for part in parts], axis=1)
            # Forms are relative to the base of the reference size, at every size.
            scale = self.normalization.base(self.normalization.reference_parameters)[group]
            logs = np.clip(logs, -LARGEST_LOG, LARGEST_LOG)
            found[group] = Interval(*(scale * np.exp(log).reshape(shape)[()] for log in logs))
        return found

    def base(self, parameters: float | None = None) -> dict[str, float]:
        """Return the base loss by group."""
        return self.normalization.base(parameters or self.parameters)

    def _log_interval(self, group: str, at: Settings) -> np.ndarray:
        surface = self.groups[group]
        center = surface.center(at)
        low, high = quantiles(surface.spread(at))
        grown = at.size - np.log(self.largest / self.normalization.reference_parameters)
        # How far the largest size was missed from below is the best evidence of how far a larger
        # one will be; it grows with the log of the size, as the error of a power does.
        size_error = surface.size_error * np.maximum(0, grown)
        noise = TWO_SIDED * np.hypot(surface.noise, size_error)
        longer = at.tokens - np.log(self.longest / self.normalization.reference_tokens)
        # The fit and the noise are independent, so their half widths add in quadrature.
        wide = widening(grown) * widening(longer)
        down = np.hypot(wide * np.maximum(0, center - low), noise)
        up = np.hypot(wide * np.maximum(0, high - center), noise)
        return np.stack([center, center - down, center + up])
