"""A form over all settings: what size and tokens do to it is the same for every form.

    log loss = form(share, rate + a size + b tokens) + s level + t tokens

(logs, from the home size and budget; ``settings.py``). A power of the size thus moves the best
learning rate, and a power of the base's original loss, which falls with size as the whole of
A / N^alpha does and is known for the target too, carries the level.
"""

from dataclasses import dataclass

import numpy as np

from llama_cpt.mixture_law.forms import Form
from llama_cpt.mixture_law.normalization import Settings

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
