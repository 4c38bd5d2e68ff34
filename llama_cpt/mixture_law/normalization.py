"""Where a run was, in the coordinates that the forms are written in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llama_cpt.mixture_law.intervals import Number
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.table import GROUPS


class Settings(NamedTuple):
    """Arrays that broadcast; logarithms are natural."""

    almr: np.ndarray
    rate: np.ndarray
    """log(learning rate), from the middle of the measured ones."""
    size: np.ndarray
    """log(parameters), from the home size."""
    level: np.ndarray
    """log(original loss of the base), from that of the home size."""
    tokens: np.ndarray
    """log(tokens), from the home budget."""

    def share(self, group: str) -> np.ndarray:
        """Of the tokens, what is of the group's own language."""
        return self.almr if group == "additional" else 1 - self.almr

    def where(self, kept: np.ndarray) -> "Settings":
        """The runs of a mask or of indices."""
        return Settings(*(values[kept] for values in self))


@dataclass(frozen=True)
class Normalization:
    """From raw numbers to settings: the home size and budget are those with the most runs."""

    middle_rate: float
    reference_parameters: float
    reference_tokens: float
    parameters: np.ndarray
    """The measured sizes, rising; the bases' losses have an entry for each."""
    bases: Mapping[str, np.ndarray]
    smallest_share: Mapping[str, float]
    """The smallest measured share above 0, by group."""

    def base(self, parameters: float) -> dict[str, float]:
        """Base loss by group: measured, or along a power law through the nearest two sizes."""
        return {group: self._base(group, parameters) for group in GROUPS}

    def _base(self, group: str, parameters: float) -> float:
        losses, sizes = self.bases[group], self.parameters
        if len(sizes) == 1:
            return float(losses[0])
        right = int(np.clip(np.searchsorted(sizes, parameters), 1, len(sizes) - 1))
        low, high = np.log(sizes[right - 1 : right + 1])
        part = (np.log(parameters) - low) / (high - low)
        return float(losses[right - 1] ** (1 - part) * losses[right] ** part)

    def settings(
        self, almr: Number, learning_rate: Number, parameters: Number, tokens: Number
    ) -> Settings:
        """Of raw numbers that broadcast."""
        sizes, place = np.unique(np.asarray(parameters, float), return_inverse=True)
        levels = np.log([self._base("original", size) for size in sizes])
        level = (levels - np.log(self._base("original", self.reference_parameters)))[place]
        values = (
            np.asarray(almr, float),
            np.log(learning_rate) - self.middle_rate,
            np.log(parameters) - np.log(self.reference_parameters),
            level.reshape(np.shape(parameters)),
            np.log(tokens) - np.log(self.reference_tokens),
        )
        return Settings(*np.broadcast_arrays(*values))

    def of(self, points: RunsTable) -> Settings:
        """Where the runs of a table were."""
        return self.settings(points.almr, points.learning_rate, points.parameters, points.tokens)


def make_normalization(
    points: RunsTable, more: Mapping[float, Mapping[str, float]]
) -> Normalization:
    """The frame of a table; ``more`` are bases known beyond it, by size and group."""
    home = points.where(at_reference(points))
    home_parameters = home.parameters[0]
    same_size = points.parameters == home_parameters
    known = {
        size: _bases(points.where(points.parameters == size))
        for size in np.unique(points.parameters)
    }
    known |= {size: dict(losses) for size, losses in more.items() if size not in known}
    sizes = np.array(sorted(known), float)
    shares = {"additional": points.almr, "original": 1 - points.almr}
    return Normalization(
        middle_rate=float(np.mean(np.log(np.unique(points.learning_rate[same_size])))),
        reference_parameters=float(home_parameters),
        reference_tokens=float(home.tokens[0]),
        parameters=sizes,
        bases={group: np.array([known[size][group] for size in sizes]) for group in GROUPS},
        smallest_share={group: float(values[values > 0].min()) for group, values in shares.items()},
    )


def at_reference(points: RunsTable) -> np.ndarray:
    """Mask of the runs at the commonest size and budget; what is not stated is all one."""
    places = np.nan_to_num(np.stack([points.parameters, points.tokens]))
    _, place, counts = np.unique(places, axis=1, return_inverse=True, return_counts=True)
    return place.ravel() == np.argmax(counts) if len(counts) else np.zeros(0, bool)


def _bases(points: RunsTable) -> dict[str, float]:
    return {
        "additional": float(np.median(points.base_additional)),
        "original": float(np.median(points.base_original)),
    }
