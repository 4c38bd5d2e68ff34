"""Functional forms: a group's loss as a function of its token share and the learning rate.

The combination of model size and token budget with the most runs is the reference. A form is
defined at this size and budget. Its value is log(loss / loss of the base model of the reference
size). ``share`` is the share of all tokens that are in the languages of the group. ``rate`` is
log(learning rate) minus its mean over the grid. Parameters have the shape (..., parameters),
settings the shape (settings), and values the shape (..., settings).
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np


class Form(ABC):
    """A functional form of the log loss of one group.

    Parameters that must be positive are stored as logarithms.
    """

    name: ClassVar[str]
    """Name of the form in ``law.json`` and in the report."""
    source: ClassVar[str]
    """Equation or publication, as cited in the report."""
    singular: ClassVar[bool] = False
    """Whether the form is undefined at a token share of 0."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.bounds = self._bounds()
        """Lower and upper bound of each parameter, by name, in the order of ``theta``."""

    @abstractmethod
    def _bounds(self) -> dict[str, tuple[float, float]]:
        """Return the value of ``bounds``."""

    @abstractmethod
    def starts(self) -> np.ndarray:
        """Return starting points of the optimization, (points, parameters)."""

    @abstractmethod
    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Return log(loss / loss of the base model of the reference size), (..., settings)."""

    @abstractmethod
    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the partial derivatives of the value.

        The first result contains one array per parameter, in the order of ``bounds``. The second
        result is the derivative with respect to ``rate``.
        """


def _columns(theta: np.ndarray) -> np.ndarray:
    """Return ``theta`` transposed to (parameters, ..., 1), which broadcasts over settings."""
    return np.moveaxis(theta, -1, 0)[..., None]


class Quadratic(Form):
    """A quadratic polynomial in the log share and the log learning rate, with a cross term.

    Dou et al. 2024, as cited in arXiv 2505.07796 App. A, use a quadratic polynomial in the learning
    rate and the replay ratio.
    """

    name = "quadratic"
    source = "quadratic in (log ratio, log LR) with cross term; cf. arXiv 2505.07796 App. A"
    singular = True

    def _bounds(self) -> dict[str, tuple[float, float]]:
        names = ("constant", "rate", "share", "rate_rate", "rate_share", "share_share")
        return dict.fromkeys(names, (-20.0, 20.0))

    def starts(self) -> np.ndarray:
        """Return one starting point at zero."""
        # The form is linear in its parameters: one Gauss-Newton step minimizes the squared error.
        return np.zeros((1, 6))

    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Return c + x r + xx r^2 + xz r z + z1 z + zz z^2 for r = rate and z = log(share)."""
        c, x, z, xx, xz, zz = _columns(theta)
        own = np.log(share)
        return c + rate * (x + xx * rate + xz * own) + own * (z + zz * own)

    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the derivatives as in ``Form.partials``."""
        _, x, _, xx, xz, _ = _columns(theta)
        own = np.log(share)
        by_theta = [np.ones_like(rate), rate, own, rate**2, rate * own, own**2]
        return by_theta, x + 2 * xx * rate + xz * own


class DCPT(Form):
    """The D-CPT law E + C / (share + e)^g, plus a parabola in the log learning rate.

    The first two terms are from arXiv 2406.01375. The paper uses one learning rate. The parabola
    extends the law to several learning rates. The minimum of the parabola shifts linearly with
    log(share + e). The form omits the paper's terms A / N^alpha and 1 / D^beta, because
    ``SurfaceModel`` adds the dependence on model size and tokens in the same way for every form.
    """

    name = "d-cpt"
    source = "D-CPT law, arXiv 2406.01375, with a parabola in log LR"

    def _bounds(self) -> dict[str, tuple[float, float]]:
        return {
            "log_floor": (-5.0, 1.5),
            "log_scale": (-9.0, 2.0),
            "log_offset": (-6.0, 0.5),
            "log_power": (-3.5, 1.5),
            "log_curvature": (-12.0, 1.0),
            "bottom": (-12.0, 12.0),
            "bottom_share": (-6.0, 6.0),
        }

    def starts(self) -> np.ndarray:
        """Return 12 starting points: 3 functions of the share, each with 4 parabolas."""
        # The curves are flat to steep. The parabolas have their minimum at low, medium and high
        # learning rates, or at a rate that shifts with the share.
        shapes = ((-0.4, -1.5, -2.0, -1.0), (-0.1, -3.0, -3.0, -0.3), (-0.1, -3.5, -1.0, 0.8))
        parabolas = ((-3.0, 0.0), (-4.5, -3.0), (-4.5, 3.0))
        return np.array(
            [(*s, curve, at, 0.0) for s in shapes for curve, at in parabolas]
            + [(*s, -4.5, -3.0, 2.0) for s in shapes]
        )

    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Return log(E + C / (share + e)^g + a (rate - bottom - shift log(share + e))^2)."""
        return np.log(self._parts(theta, share, rate)[0])

    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the derivatives as in ``Form.partials``."""
        loss, floor, falling, log_own, curve, off = self._parts(theta, share, rate)
        own, offset = np.exp(log_own), np.exp(_columns(theta)[2])
        power, shift = np.exp(_columns(theta)[3]), _columns(theta)[6]
        slope = 2 * curve * off / loss
        # Chain rule: both the power term and the minimum of the parabola depend on log(share + e).
        by_own = -falling * power / own / loss - slope * shift / own
        by_power = -falling * power * log_own / loss
        by_theta = [floor / loss, falling / loss, by_own * offset, by_power]
        return [*by_theta, curve * off**2 / loss, -slope, -slope * log_own], slope

    def _parts(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return the relative loss and the terms from which its derivatives are computed.

        The terms are E, C / (share + e)^g, log(share + e), a, and the distance of the rate from the
        minimum of the parabola.
        """
        floor, scale, offset, power, curvature, bottom, shift = _columns(theta)
        log_own = np.log(share + np.exp(offset))
        falling = np.exp(scale - np.exp(power) * log_own)
        off = rate - bottom - shift * log_own
        curve = np.exp(curvature)
        floor = np.exp(floor)
        return floor + falling + curve * off**2, floor, falling, log_own, curve, off


class Dynamics(Form):
    """The CPT dynamics law: a change of the base-model loss that saturates with training.

    The relative loss is 1 + (1 - (1 + E S)^-b) (+-B h - G), with + for the original group and - for
    the additional group. S is the area under the learning-rate curve; for a fixed schedule it is
    proportional to the peak learning rate times the tokens. B (1 - (1 + E S)^-b) and the replay
    factor h are from arXiv 2505.07796 (Eq. 8), with h normalized to 1 at ALMR 1:
    h = (1 - exp(-k ALMR)) / (1 - exp(-k)). The paper also has a term that does not depend on the
    ratio, a power law of the area; here, G replaces this term and saturates with the area.
    """

    name = "cpt-dynamics"
    source = "CPT dynamics, arXiv 2505.07796: learning-rate area and replay factor (Eq. 8)"

    def _bounds(self) -> dict[str, tuple[float, float]]:
        old = self.group == "original"
        return {
            "log_area": (-9.0, 9.0),
            "log_power": (-4.0, 1.5),
            "replay": (-8.0, 30.0),
            # For the additional loss, B and G are at most exp(-0.7) < 1/2, so 1 - B h - G stays
            # positive. The original loss can increase, so its B can be large.
            "log_shift": (-7.0, 4.0 if old else -0.7),
            "log_gain": (-12.0, -0.7),
        }

    def starts(self) -> np.ndarray:
        """Return 18 starting points for the additional group, 36 for the original group."""
        # Short to long training, with concave (k > 0) and convex (k < 0) replay factors.
        ends = ((-0.7, -4.0), (0.7, -4.0)) if self.group == "original" else ((-2.0, -0.8),)
        return np.array(
            [
                (area, power, replay, *end)
                for area in (-3.0, 0.0, 3.0)
                for power in (-1.0, 0.5)
                for replay in (-2.0, 1.0, 4.0)
                for end in ends
            ]
        )

    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Return log(1 + (1 - (1 + E S)^-b) (+-B h - G))."""
        learned, shifted, *_ = self._parts(theta, share, rate)
        return np.log1p(learned * shifted)

    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the derivatives as in ``Form.partials``."""
        learned, shifted, area, power, replay, shift, gain = self._parts(theta, share, rate)
        loss = 1 + learned * shifted
        left = 1 - learned
        # d(1 - (1 + E S)^-b) = (1 + E S)^-b (b dlog(1 + E S) + log(1 + E S) db), where E and b are
        # stored as logarithms.
        by_area = shifted * left * power * area / (1 + area) / loss
        by_power = shifted * left * np.log1p(area) * power / loss
        by_replay = learned * shift * self._replay_slope(theta, share) / loss
        by_shift, by_gain = learned * shift * replay / loss, -learned * gain / loss
        # E S is proportional to E and to the learning rate: the log derivatives are equal.
        return [by_area, by_power, by_replay, by_shift, by_gain], by_area

    def _parts(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return the factors of the loss from which its derivatives are computed.

        They are 1 - (1 + E S)^-b, +-B h - G, E S, b, h, +-B and G.
        """
        area, power, strength, shift, gain = _columns(theta)
        # S is proportional to the peak learning rate times the tokens. ``SurfaceModel`` adds the
        # logarithm of the tokens, times a fitted exponent, to ``rate``.
        area, power, shift, gain = np.exp(area + rate), np.exp(power), np.exp(shift), np.exp(gain)
        # 1 - (1 + E S)^-b; expm1 and log1p stay accurate for small areas.
        learned = -np.expm1(-power * np.log1p(area))
        replay = _saturation(strength, self._almr(share))
        # h grows with ALMR. This increases the original loss and decreases the additional loss.
        shift = shift if self.group == "original" else -shift
        return learned, shift * replay - gain, area, power, replay, shift, gain

    def _almr(self, share: np.ndarray) -> np.ndarray:
        """Return the ALMR for each token share of the group."""
        return share if self.group == "additional" else 1 - share

    def _replay_slope(self, theta: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Return the derivative of the replay factor h with respect to k."""
        strength, almr = _off_zero(_columns(theta)[2]), self._almr(share)
        whole, part = -np.expm1(-strength), -np.expm1(-strength * almr)
        return (almr * np.exp(-strength * almr) * whole - part * np.exp(-strength)) / whole**2


def _off_zero(strength: np.ndarray) -> np.ndarray:
    """Return k (``strength``), with values closer to 0 than 1e-4 replaced by 1e-4."""
    # At k = 0 the replay factor is 0 / 0. Its limit is the ALMR, which k = 1e-4 approximates.
    return np.where(np.abs(strength) < 1e-4, 1e-4, strength)


def _saturation(strength: np.ndarray, almr: np.ndarray) -> np.ndarray:
    """Return the replay factor h = (1 - exp(-k ALMR)) / (1 - exp(-k))."""
    strength = _off_zero(strength)
    return np.expm1(-strength * almr) / np.expm1(-strength)


class Sailor(Form):
    """A quadratic polynomial in log(share) - log(learning rate), the "magic metric" of Sailor.

    The paper, arXiv 2404.03608, fits the polynomial only to the loss of the original languages. For
    the additional group, the coefficient of the log learning rate, -1 in the paper, is a fitted
    parameter.
    """

    name = "sailor"
    source = "Sailor, arXiv 2404.03608: quadratic in log(share) - log(LR)"
    singular = True

    def _bounds(self) -> dict[str, tuple[float, float]]:
        bounds = dict.fromkeys(("constant", "metric", "metric_metric"), (-20.0, 20.0))
        return bounds | ({"rate": (-6.0, 6.0)} if self.group == "additional" else {})

    def starts(self) -> np.ndarray:
        """Return one starting point for the original group, three for the additional group."""
        # The loss of the additional group can decrease or increase with the learning rate.
        if self.group == "original":
            return np.zeros((1, 3))
        return np.array([(0.0, -0.1, 0.0, rate) for rate in (-1.0, 0.3, 1.0)])

    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Return c + u m + uu m^2 for the metric m."""
        c, u, uu, metric, _ = self._parts(theta, share, rate)
        return c + metric * (u + uu * metric)

    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the derivatives as in ``Form.partials``."""
        _, u, uu, metric, factor = self._parts(theta, share, rate)
        by_metric = u + 2 * uu * metric
        by_theta = [np.ones_like(metric), metric, metric**2]
        free = [by_metric * rate] if self.group == "additional" else []
        return by_theta + free, by_metric * factor

    def _parts(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return c, u, uu, the metric, and the coefficient of the log rate in the metric."""
        c, u, uu, *free = _columns(theta)
        factor = free[0] if free else -np.ones(1)
        return c, u, uu, np.log(share) + factor * rate, factor


def forms_of(group: str) -> tuple[Form, ...]:
    """Return an instance of every form for one group."""
    return tuple(form(group) for form in (Quadratic, DCPT, Dynamics, Sailor))
