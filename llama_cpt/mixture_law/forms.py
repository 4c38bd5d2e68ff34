"""Functional forms of a loss surface over (own share, learning rate) at one size and budget.

A form returns log(loss / loss of the base at the reference size). ``share`` is the share of the
tokens in the group's own languages, ``rate`` is log(learning rate) minus its mean over the grid. A
parameter vector may have leading axes; the result has them too, before the axes of the settings.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np


class Form(ABC):
    """A parametric surface; positive parameters are stored as logarithms."""

    name: ClassVar[str]
    """The identifier in ``law.json``."""
    source: ClassVar[str]
    """The publication, as cited in the report."""
    singular: ClassVar[bool] = False
    """Whether the form is undefined at share 0."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.bounds = self._bounds()
        """Lowest and highest value by parameter name."""

    @abstractmethod
    def _bounds(self) -> dict[str, tuple[float, float]]: ...

    @abstractmethod
    def starts(self) -> np.ndarray:
        """Return the starting points of the search, one per row."""

    @abstractmethod
    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Return log(loss / loss of the base)."""

    @abstractmethod
    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the derivatives of the value with respect to each parameter and to the rate."""


def _columns(theta: np.ndarray) -> np.ndarray:
    """Return the parameters along the first axis, each broadcastable against settings."""
    return np.moveaxis(theta, -1, 0)[..., None]


class Quadratic(Form):
    """A quadratic in (log share, log rate) with a cross term.

    Dou et al. 2024, as cited in arXiv 2505.07796 App. A: quadratic in the learning rate and the
    replay ratio.
    """

    name = "quadratic"
    source = "quadratic in (log ratio, log LR) with cross term; cf. arXiv 2505.07796 App. A"
    singular = True

    def _bounds(self) -> dict[str, tuple[float, float]]:
        names = ("constant", "rate", "share", "rate_rate", "rate_share", "share_share")
        return dict.fromkeys(names, (-20.0, 20.0))

    def starts(self) -> np.ndarray:
        """Return zeros: the form is linear, so one Gauss-Newton step reaches the least squares."""
        return np.zeros((1, 6))

    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Return c + x r + xx r^2 + xz r z + z1 z + zz z^2 for r = log rate, z = log share."""
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
    """D-CPT's E + C / (share + e)^g, plus a parabola in the log rate.

    arXiv 2406.01375. The parabola, whose minimum moves with log(share + e), is an addition for the
    learning rate. The terms A / N^alpha and 1 / D^beta of the paper are in ``SurfaceModel``, which
    treats size and tokens in the same way for every form.
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
        """Return shallow and deep curves with the parabola at low, middle and high rates."""
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
        # The chain rule through log(share + e), on which both the power term and the position of
        # the parabola depend.
        by_own = -falling * power / own / loss - slope * shift / own
        by_power = -falling * power * log_own / loss
        by_theta = [floor / loss, falling / loss, by_own * offset, by_power]
        return [*by_theta, curve * off**2 / loss, -slope, -slope * log_own], slope

    def _parts(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return the loss and the intermediate terms that its derivatives share."""
        floor, scale, offset, power, curvature, bottom, shift = _columns(theta)
        log_own = np.log(share + np.exp(offset))
        falling = np.exp(scale - np.exp(power) * log_own)
        off = rate - bottom - shift * log_own
        curve = np.exp(curvature)
        floor = np.exp(floor)
        return floor + falling + curve * off**2, floor, falling, log_own, curve, off


class Dynamics(Form):
    """CPT dynamics: the base's loss, plus terms that saturate with the learning-rate area.

    arXiv 2505.07796: B (1 - (1 + E S)^-b) times its replay factor (Eq. 8), here normalized by its
    value without replay: h = (1 - exp(-k ALMR)) / (1 - exp(-k)). The area S is the integral of the
    learning rate, so for one schedule the peak rate times the tokens. The paper's power law of the
    area, which does not depend on the ratio, becomes a gain G that saturates with the same area:
    loss = base (1 + (1 - (1 + E S)^-b) (+-B h - G)), with + for the original group.
    """

    name = "cpt-dynamics"
    source = "CPT dynamics, arXiv 2505.07796: learning-rate area and replay factor (Eq. 8)"

    def _bounds(self) -> dict[str, tuple[float, float]]:
        old = self.group == "original"
        return {
            "log_area": (-9.0, 9.0),
            "log_power": (-4.0, 1.5),
            "replay": (-8.0, 30.0),
            # For the additional loss B and G are below exp(-0.7) < 1/2 each, so 1 - B h - G stays
            # positive. The original loss may grow, so its B may be large.
            "log_shift": (-7.0, 4.0 if old else -0.7),
            "log_gain": (-12.0, -0.7),
        }

    def starts(self) -> np.ndarray:
        """Return few and many steps with saturating, straight and steep replay factors."""
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
        # d(1 - (1 + E S)^-b) = (1 + E S)^-b (b dlog(1 + E S) + log(1 + E S) db), by the logs of E
        # and b.
        by_area = shifted * left * power * area / (1 + area) / loss
        by_power = shifted * left * np.log1p(area) * power / loss
        by_replay = learned * shift * self._replay_slope(theta, share) / loss
        by_shift, by_gain = learned * shift * replay / loss, -learned * gain / loss
        # The area is proportional to the rate: both have the same derivative in logarithms.
        return [by_area, by_power, by_replay, by_shift, by_gain], by_area

    def _parts(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return the factors of the loss that its derivatives share."""
        area, power, strength, shift, gain = _columns(theta)
        # S is the peak rate times the tokens; the tokens enter as a shift of the log rate
        # (``SurfaceModel``).
        area, power, shift, gain = np.exp(area + rate), np.exp(power), np.exp(shift), np.exp(gain)
        # 1 - (1 + E S)^-b; expm1 and log1p stay accurate for small areas.
        learned = -np.expm1(-power * np.log1p(area))
        replay = _saturation(strength, self._almr(share))
        # Replay protects the original loss and costs the additional one.
        shift = shift if self.group == "original" else -shift
        return learned, shift * replay - gain, area, power, replay, shift, gain

    def _almr(self, share: np.ndarray) -> np.ndarray:
        return share if self.group == "additional" else 1 - share

    def _replay_slope(self, theta: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Return the derivative of the replay factor h with respect to k."""
        strength, almr = _off_zero(_columns(theta)[2]), self._almr(share)
        whole, part = -np.expm1(-strength), -np.expm1(-strength * almr)
        return (almr * np.exp(-strength * almr) * whole - part * np.exp(-strength)) / whole**2


def _off_zero(strength: np.ndarray) -> np.ndarray:
    # At k = 0 the replay factor is 0 / 0; its limit there is the ratio itself.
    return np.where(np.abs(strength) < 1e-4, 1e-4, strength)


def _saturation(strength: np.ndarray, almr: np.ndarray) -> np.ndarray:
    """Return the replay factor h = (1 - exp(-k ALMR)) / (1 - exp(-k))."""
    strength = _off_zero(strength)
    return np.expm1(-strength * almr) / np.expm1(-strength)


class Sailor(Form):
    """A quadratic in log(share) - log(rate): Sailor's "magic metric", arXiv 2404.03608.

    The paper fits it to the original languages only. For the additional language the factor of the
    log rate, -1 in the paper, is a free parameter.
    """

    name = "sailor"
    source = "Sailor, arXiv 2404.03608: quadratic in log(share) - log(LR)"
    singular = True

    def _bounds(self) -> dict[str, tuple[float, float]]:
        bounds = dict.fromkeys(("constant", "metric", "metric_metric"), (-20.0, 20.0))
        return bounds | ({"rate": (-6.0, 6.0)} if self.group == "additional" else {})

    def starts(self) -> np.ndarray:
        """Return zeros; for the additional group, rates that help and rates that hurt."""
        if self.group == "original":
            return np.zeros((1, 3))
        return np.array([(0.0, -0.1, 0.0, rate) for rate in (-1.0, 0.3, 1.0)])

    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Return c + u m + uu m^2 of the metric m."""
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
        c, u, uu, *free = _columns(theta)
        # The metric is log(share) - log(rate) as published, or with a free factor of the log rate.
        factor = free[0] if free else -np.ones(1)
        return c, u, uu, np.log(share) + factor * rate, factor


def forms_of(group: str) -> tuple[Form, ...]:
    """Return all forms for one group."""
    return tuple(form(group) for form in (Quadratic, DCPT, Dynamics, Sailor))
