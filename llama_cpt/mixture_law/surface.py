"""Loss surfaces: a form extended to model size and tokens, and predictions with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.forms import Form
from llama_cpt.mixture_law.intervals import Interval, Number, quantiles
from llama_cpt.mixture_law.normalization import Normalization, Settings
from llama_cpt.mixture_law.table import GROUPS

POWERS = ("level", "rate_by_size", "tokens", "rate_by_tokens")
"""Scaling exponents that every form has: s, a, t and b in the equation of ``SurfaceModel``."""
PRIOR = np.array([1.0, 0.713, 0.0, -0.307])
"""Prior means of ``POWERS``, used if the data has only one model size or only one token budget.

With these exponents, losses are proportional to the base-model loss and independent of the tokens.
The optimal learning rate is proportional to N^-0.713 D^0.307 for N parameters and D tokens, the
Step Law of arXiv 2503.04715 for training from scratch. (The signs of a and b are opposite, because
rate + a size + b tokens is constant at the optimum.)
"""
PRIOR_WIDTH = np.array([0.0, 0.713 / 1.645, 0.0, 0.307 / 1.645])
"""Prior standard deviations of ``POWERS``; ``LEVEL_WIDTH`` is added to the first entry.

The central 90 % interval of each learning-rate exponent is from 0 to twice its prior mean.
"""
FAR_RATE = 100.0
"""Largest |rate| at which a form is evaluated, to prevent overflow of the squared rate."""
LEVEL_WIDTH = {"additional": 0.5, "original": 0.05}
"""Prior standard deviation of the level exponent s, by language group.

For the original group, the prior mean describes an increase of the loss in proportion to the
base-model loss. The width covers an increase by the same amount at every model size (arXiv
2505.07796). For the additional group, the prior is wide, because little is known about the
exponent.
"""


@dataclass(frozen=True)
class SurfaceModel:
    """A form extended to all model sizes and token budgets:

        log relative loss = form(share, rate + a size + b tokens) + s level + t tokens

    in the logarithmic coordinates of ``Settings``. The exponents a and b shift the optimal learning
    rate; s and t scale the loss. The level, which depends on the original loss of the base model,
    replaces the usual term A / N^alpha, because the level is also known for a target size without
    runs. A parameter vector contains the parameters of the form, followed by ``POWERS``.
    """

    form: Form
    free: np.ndarray
    """Mask of the fitted entries of the parameter vector; all other entries come from the prior."""
    smallest_share: float
    """Smallest token share above 0 among the runs; singular forms clip shares at half of it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the parameter vector."""
        return (*self.form.bounds, *POWERS)

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of the parameters, each of shape (parameters)."""
        # The last four are the bounds of ``POWERS``, far beyond published exponents.
        pairs = [*self.form.bounds.values(), (-5.0, 5.0), (-3.0, 3.0), (-3.0, 3.0), (-3.0, 3.0)]
        low, high = np.array(pairs).T
        return low, high

    def starts(self) -> np.ndarray:
        """Return the starting points of the form with ``POWERS`` at their prior means.

        The shape is (points, parameters).
        """
        core = self.form.starts()
        return np.concatenate([core, np.broadcast_to(PRIOR, (len(core), len(PRIOR)))], axis=1)

    def value(self, theta: np.ndarray, at: Settings) -> np.ndarray:
        """Return log(loss / loss of the base model of the reference size), (..., settings)."""
        core, s, _, t, _ = self._split(theta)
        y = self.form.value(core, self._share(at), self._rate(theta, at))
        return y + s * at.level + t * at.tokens

    def jacobian(self, theta: np.ndarray, at: Settings) -> np.ndarray:
        """Return the partial derivatives of ``value``, (..., settings, parameters)."""
        rate = self._rate(theta, at)
        by_core, by_rate = self.form.partials(self._split(theta)[0], self._share(at), rate)
        # Chain rule: a and b act through the rate.
        by_powers = [at.level, by_rate * at.size, at.tokens, by_rate * at.tokens]
        return np.stack(np.broadcast_arrays(*by_core, *by_powers), axis=-1)

    def fits(self, at: Settings) -> np.ndarray:
        """Return the mask of the settings at which the form is defined without clipping."""
        return (at.share(self.form.group) > 0) | (not self.form.singular)

    def _share(self, at: Settings) -> np.ndarray:
        """Return the token share of the group, clipped for a singular form."""
        # Singular forms contain log(share). They are clipped, not skipped, at share 0, so that the
        # held-out errors of all forms are for the same runs.
        share = at.share(self.form.group)
        return np.maximum(share, self.smallest_share / 2) if self.form.singular else share

    def _rate(self, theta: np.ndarray, at: Settings) -> np.ndarray:
        """Return rate + a size + b tokens, clipped to [-FAR_RATE, FAR_RATE]."""
        _, _, by_size, _, by_tokens = self._split(theta)
        # With exponents drawn from a wide prior, the shift to a distant target can be hundreds of
        # e-folds, and its square overflows in exponentials.
        return np.clip(at.rate + by_size * at.size + by_tokens * at.tokens, -FAR_RATE, FAR_RATE)

    def _split(self, theta: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the form's parameters, (..., parameters), then s, a, t and b, each (..., 1)."""
        core = theta[..., : -len(POWERS)]
        return core, *np.moveaxis(theta[..., -len(POWERS) :], -1, 0)[..., None]


def make_model(form: Form, at: Settings, smallest_share: float) -> SurfaceModel:
    """Return the model of a form, with ``POWERS`` fitted as far as the settings determine them.

    The exponents s and a are fitted if the settings have at least two model sizes, and t and b if
    the settings have at least two token budgets.
    """
    # Rounding merges values that differ only by floating-point errors.
    sizes, budgets = (len(np.unique(np.round(v, 9))) > 1 for v in (at.size, at.tokens))
    free = [True] * len(form.bounds) + [sizes, sizes, budgets, budgets]
    return SurfaceModel(form, np.array(free), smallest_share)


CHUNK = 2000
"""Largest number of settings predicted at once for all draws, to limit memory."""
FAR = 10.0
"""Ratio to the largest fitted model size or token budget above which intervals are widened."""
LARGEST_LOG = 300.0
"""Largest |log loss| and |log rate|, to keep predictions for distant targets finite."""
TWO_SIDED = 1.645
"""Half-width of the 90 % interval of a standard normal distribution."""


def widening(grown: Number) -> Number:
    """Return the factor, at least 1, by which intervals are widened.

    ``grown`` is the log of the ratio of a size or token budget to the largest fitted value. The
    factor is the base-10 logarithm of that ratio if the ratio is above ``FAR``, otherwise 1.
    """
    return np.maximum(1.0, grown / np.log(FAR))


@dataclass(frozen=True)
class GroupSurface:
    """The loss surface of one group: the selected form, and bootstrap draws of several forms.

    The draws come from every form whose weight (see ``selection.py``) is not 0, so that intervals
    include the uncertainty about the form.
    """

    model: SurfaceModel
    """The model of the selected form."""
    theta: np.ndarray
    """The fitted parameters of the selected form."""
    draws: tuple[tuple[SurfaceModel, np.ndarray, np.ndarray], ...]
    """One tuple (model, parameters, indices) per form with draws.

    The parameters have the shape (draws of the form, parameters). The indices are the positions of
    these draws among all draws of the group.
    """
    noise: float
    """Standard deviation of the log loss of a new run, estimated by ``HeldOut.inside``."""
    size_error: float
    """Held-out error for the largest model size, per unit of log(size); 0 for a single size."""

    def center(self, at: Settings, shift: np.ndarray | float = 0.0) -> np.ndarray:
        """Return the log relative loss of the selected form, with ``shift`` added to the rates."""
        return self.model.value(self.theta, at._replace(rate=at.rate + shift))

    def spread(self, at: Settings, shift: np.ndarray | None = None) -> np.ndarray:
        """Return the log relative loss of every draw, (draws, settings).

        ``shift``, (draws), is added to the rates.
        """
        # Draws of different forms are in random order, so row i is the same draw in every result.
        count = sum(len(rows) for _, _, rows in self.draws)
        values = np.empty((count, len(at.almr)))
        for model, thetas, rows in self.draws:
            moved = at if shift is None else at._replace(rate=at.rate + shift[rows, None])
            values[rows] = model.value(thetas, moved)
        return values


@dataclass(frozen=True)
class Surface:
    """The loss surfaces of both groups."""

    normalization: Normalization
    groups: Mapping[str, GroupSurface]
    parameters: float
    """Default model size of predictions."""
    tokens: float
    """Default token budget of predictions."""
    largest: float
    """Largest fitted model size."""
    longest: float
    """Largest fitted token budget."""
    draws: int
    """Number of bootstrap draws of each group."""

    def predict(
        self,
        almr: Number,
        learning_rate: Number,
        parameters: float | None = None,
        tokens: float | None = None,
    ) -> dict[str, Interval]:
        """Return the predicted loss of a run by language group, with its 90 % prediction interval.

        Arguments broadcast; ``parameters`` and ``tokens`` default to those of the surface. In log
        loss, each half-width of the interval is the sum in quadrature of three terms: the
        half-width of the bootstrap interval (widened for a size or budget above ``FAR`` times the
        largest fitted value), 1.645 times the noise of a run, and, above the largest fitted size N,

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
            # At every model size, forms are relative to the base model of the reference size.
            scale = self.normalization.base(self.normalization.reference_parameters)[group]
            logs = np.clip(logs, -LARGEST_LOG, LARGEST_LOG)
            found[group] = Interval(*(scale * np.exp(log).reshape(shape)[()] for log in logs))
        return found

    def base(self, parameters: float | None = None) -> dict[str, float]:
        """Return the base-model loss at a model size by language group."""
        return self.normalization.base(parameters or self.parameters)

    def _log_interval(self, group: str, at: Settings) -> np.ndarray:
        """Return the log relative loss and the two ends of its interval, (3, settings)."""
        surface = self.groups[group]
        center = surface.center(at)
        low, high = quantiles(surface.spread(at))
        grown = at.size - np.log(self.largest / self.normalization.reference_parameters)
        # The error at the largest size, predicted from smaller ones, estimates the error at still
        # larger sizes. The error of an exponent grows linearly with the log of the size.
        size_error = surface.size_error * np.maximum(0, grown)
        noise = TWO_SIDED * np.hypot(surface.noise, size_error)
        longer = at.tokens - np.log(self.longest / self.normalization.reference_tokens)
        # The errors of the fit and the noise are independent: their half-widths add in quadrature.
        wide = widening(grown) * widening(longer)
        down = np.hypot(wide * np.maximum(0, center - low), noise)
        up = np.hypot(wide * np.maximum(0, high - center), noise)
        return np.stack([center, center - down, center + up])
