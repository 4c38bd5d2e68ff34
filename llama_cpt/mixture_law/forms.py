"""The forms of a loss surface over (own share, learning rate), at one size and budget.

Each is of the log loss over that of the base at the home size. ``share`` is what the tokens hold of
the group's own language, ``rate`` the log learning rate from its middle. A vector of parameters may
have axes before its last: the values then have them too, before those of the settings.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np


class Form(ABC):
    """A surface with parameters; positive ones are kept as logarithms."""

    name: ClassVar[str]
    source: ClassVar[str]
    singular: ClassVar[bool] = False
    """At share 0."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.bounds = self._bounds()
        """Name -> lowest and highest value."""

    @abstractmethod
    def _bounds(self) -> dict[str, tuple[float, float]]: ...

    @abstractmethod
    def starts(self) -> np.ndarray:
        """Where searches begin, a row each."""

    @abstractmethod
    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """Log loss over that of the base."""

    @abstractmethod
    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Derivatives of the value by each parameter, and by the rate."""


def _columns(theta: np.ndarray) -> np.ndarray:
    return np.moveaxis(theta, -1, 0)[..., None]


class Quadratic(Form):
    """A quadratic in (log share, log rate) with its cross term.

    Dou et al. 2024, as told by arXiv 2505.07796 App. A: quadratic in learning rate and replay.
    """

    name = "quadratic"
    source = "quadratic in (log ratio, log LR) with cross term; cf. arXiv 2505.07796 App. A"
    singular = True

    def _bounds(self) -> dict[str, tuple[float, float]]:
        names = ("constant", "rate", "share", "rate_rate", "rate_share", "share_share")
        return dict.fromkeys(names, (-20.0, 20.0))

    def starts(self) -> np.ndarray:
        """The form is linear: the first step reaches the least squares from anywhere."""
        return np.zeros((1, 6))

    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """See the class."""
        c, x, z, xx, xz, zz = _columns(theta)
        own = np.log(share)
        return c + rate * (x + xx * rate + xz * own) + own * (z + zz * own)

    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """See ``Form``."""
        _, x, _, xx, xz, _ = _columns(theta)
        own = np.log(share)
        by_theta = [np.ones_like(rate), rate, own, rate**2, rate * own, own**2]
        return by_theta, x + 2 * xx * rate + xz * own


class DCPT(Form):
    """D-CPT's E + C / (share + e)^g, and a parabola in the log rate.

    arXiv 2406.01375; the parabola, whose bottom moves with the log share, is ours. Its A / N^alpha
    and 1 / D^beta are in the carry (``surface_model.py``), as for every form.
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
        """Shallow and deep, with the bottom of the parabola left, right and in the middle."""
        shapes = ((-0.4, -1.5, -2.0, -1.0), (-0.1, -3.0, -3.0, -0.3), (-0.1, -3.5, -1.0, 0.8))
        parabolas = ((-3.0, 0.0), (-4.5, -3.0), (-4.5, 3.0))
        return np.array(
            [(*s, curve, at, 0.0) for s in shapes for curve, at in parabolas]
            + [(*s, -4.5, -3.0, 2.0) for s in shapes]
        )

    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """See the class."""
        return np.log(self._parts(theta, share, rate)[0])

    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """See ``Form``."""
        loss, floor, falling, log_own, curve, off = self._parts(theta, share, rate)
        own, offset = np.exp(log_own), np.exp(_columns(theta)[2])
        power, shift = np.exp(_columns(theta)[3]), _columns(theta)[6]
        slope = 2 * curve * off / loss
        by_own = -falling * power / own / loss - slope * shift / own
        by_power = -falling * power * log_own / loss
        by_theta = [floor / loss, falling / loss, by_own * offset, by_power]
        return [*by_theta, curve * off**2 / loss, -slope, -slope * log_own], slope

    def _parts(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        floor, scale, offset, power, curvature, bottom, shift = _columns(theta)
        log_own = np.log(share + np.exp(offset))
        falling = np.exp(scale - np.exp(power) * log_own)
        off = rate - bottom - shift * log_own
        curve = np.exp(curvature)
        floor = np.exp(floor)
        return floor + falling + curve * off**2, floor, falling, log_own, curve, off


class Dynamics(Form):
    """CPT dynamics: the base's loss, and what saturates with the learning-rate area.

    arXiv 2505.07796: B (1 - (1 + E S)^-b) times its replay factor (Eq. 8), here over that of no
    replay: h = (1 - exp(-k ALMR)) / (1 - exp(-k)). S is the area, for one schedule the peak rate
    times the tokens. What is learned whatever the ratio, their power law of the whole area, is a
    gain that saturates with the same area: loss = base (1 + (1 - (1 + E S)^-b) (+-B h - G)).
    """

    name = "cpt-dynamics"
    source = "CPT dynamics, arXiv 2505.07796: learning-rate area and replay factor (Eq. 8)"

    def _bounds(self) -> dict[str, tuple[float, float]]:
        old = self.group == "original"
        return {
            "log_area": (-9.0, 9.0),
            "log_power": (-4.0, 1.5),
            "replay": (-8.0, 30.0),
            "log_shift": (-7.0, 4.0 if old else -0.7),
            "log_gain": (-12.0, -0.7),
        }

    def starts(self) -> np.ndarray:
        """Few or many effective steps; saturating, straight and steep in the ratio."""
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
        """See the class."""
        learned, shifted, *_ = self._parts(theta, share, rate)
        return np.log1p(learned * shifted)

    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """See ``Form``."""
        learned, shifted, area, power, replay, shift, gain = self._parts(theta, share, rate)
        loss = 1 + learned * shifted
        left = 1 - learned
        by_area = shifted * left * power * area / (1 + area) / loss
        by_power = shifted * left * np.log1p(area) * power / loss
        by_replay = learned * shift * self._replay_slope(theta, share) / loss
        by_shift, by_gain = learned * shift * replay / loss, -learned * gain / loss
        return [by_area, by_power, by_replay, by_shift, by_gain], by_area

    def _parts(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        area, power, strength, shift, gain = _columns(theta)
        area, power, shift, gain = np.exp(area + rate), np.exp(power), np.exp(shift), np.exp(gain)
        learned = -np.expm1(-power * np.log1p(area))
        replay = _saturation(strength, self._almr(share))
        shift = shift if self.group == "original" else -shift
        return learned, shift * replay - gain, area, power, replay, shift, gain

    def _almr(self, share: np.ndarray) -> np.ndarray:
        return share if self.group == "additional" else 1 - share

    def _replay_slope(self, theta: np.ndarray, share: np.ndarray) -> np.ndarray:
        strength, almr = _off_zero(_columns(theta)[2]), self._almr(share)
        whole, part = -np.expm1(-strength), -np.expm1(-strength * almr)
        return (almr * np.exp(-strength * almr) * whole - part * np.exp(-strength)) / whole**2


def _off_zero(strength: np.ndarray) -> np.ndarray:
    return np.where(np.abs(strength) < 1e-4, 1e-4, strength)


def _saturation(strength: np.ndarray, almr: np.ndarray) -> np.ndarray:
    strength = _off_zero(strength)
    return np.expm1(-strength * almr) / np.expm1(-strength)


class Sailor(Form):
    """A quadratic in log(share) - log(rate): Sailor's "magic metric", arXiv 2404.03608.

    Sailor says it of the original language. For the additional one the factor of the log rate is
    free, which is ours.
    """

    name = "sailor"
    source = "Sailor, arXiv 2404.03608: quadratic in log(share) - log(LR)"
    singular = True

    def _bounds(self) -> dict[str, tuple[float, float]]:
        bounds = dict.fromkeys(("constant", "metric", "metric_metric"), (-20.0, 20.0))
        return bounds | ({"rate": (-6.0, 6.0)} if self.group == "additional" else {})

    def starts(self) -> np.ndarray:
        """Of a rate that helps as the share does, and of one that hurts."""
        if self.group == "original":
            return np.zeros((1, 3))
        return np.array([(0.0, -0.1, 0.0, rate) for rate in (-1.0, 0.3, 1.0)])

    def value(self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray) -> np.ndarray:
        """See the class."""
        c, u, uu, metric, _ = self._parts(theta, share, rate)
        return c + metric * (u + uu * metric)

    def partials(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """See ``Form``."""
        _, u, uu, metric, factor = self._parts(theta, share, rate)
        by_metric = u + 2 * uu * metric
        by_theta = [np.ones_like(metric), metric, metric**2]
        free = [by_metric * rate] if self.group == "additional" else []
        return by_theta + free, by_metric * factor

    def _parts(
        self, theta: np.ndarray, share: np.ndarray, rate: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        c, u, uu, *free = _columns(theta)
        factor = free[0] if free else -np.ones(1)
        return c, u, uu, np.log(share) + factor * rate, factor


def forms_of(group: str) -> tuple[Form, ...]:
    """All of them, for one group."""
    return tuple(form(group) for form in (Quadratic, DCPT, Dynamics, Sailor))
