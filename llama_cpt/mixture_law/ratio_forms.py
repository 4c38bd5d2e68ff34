"""Forms of a loss over the ratio alone: linear in one curve of the share, whose shape is tried."""

from dataclasses import dataclass

import numpy as np

OFFSETS = np.geomspace(0.001, 0.3, 12)
POWERS = np.geomspace(0.05, 3, 20)


@dataclass(frozen=True)
class RatioForm:
    """loss = c + k phi(share): c and k by least squares for every shape of phi, the best shape."""

    name: str
    shapes: np.ndarray
    """(shapes, numbers): none for a line."""

    @property
    def parameters(self) -> int:
        """Fitted numbers."""
        return 2 + self.shapes.shape[1]

    def phi(self, share: np.ndarray) -> np.ndarray:
        """(shapes, settings)."""
        numbers = [column[:, None] for column in self.shapes.T]
        match numbers:
            case [rate]:
                return np.exp(rate * share)
            case [offset, power]:
                return (share + offset) ** -power
            case _:
                return share[None]

    def predict(self, share: np.ndarray, losses: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Losses (fits, wanted) of fits to ``losses`` (fits, settings)."""
        phi = self.phi(share)
        middle = phi.mean(axis=1, keepdims=True)
        off = phi - middle
        power = np.maximum(np.sum(off**2, axis=1), 1e-30)
        mean = losses.mean(axis=1, keepdims=True)
        slope = (losses @ off.T) / power
        missed = np.sum((losses - mean) ** 2, axis=1, keepdims=True) - slope**2 * power
        best = np.argmin(missed, axis=1)
        steep = np.take_along_axis(slope, best[:, None], axis=1)
        return mean + steep * (self.phi(wanted) - middle)[best]


@dataclass(frozen=True)
class PiecewiseLinear:
    """Straight lines between neighbouring ratios: nothing is fitted, so there is no interval."""

    name: str = "lines between neighbouring ratios"
    parameters: int = 2

    def predict(self, share: np.ndarray, losses: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """As ``RatioForm.predict``."""
        ratios, place, counts = np.unique(share, return_inverse=True, return_counts=True)
        means = [np.bincount(place, row) / counts for row in losses]
        return np.array([np.interp(wanted, ratios, mean) for mean in means])


LINE = RatioForm("line", np.zeros((1, 0)))
RATES = np.concatenate([-np.geomspace(60, 0.1, 40), np.geomspace(0.1, 10, 15)])
RATIO_FORMS = (
    LINE,
    RatioForm("exponential of the share (Data Mixing Laws, arXiv 2403.16952)", RATES[:, None]),
    RatioForm(
        "power of the share with an offset (D-CPT law, arXiv 2406.01375)",
        np.stack(np.meshgrid(OFFSETS, POWERS), axis=-1).reshape(-1, 2),
    ),
    PiecewiseLinear(),
)
