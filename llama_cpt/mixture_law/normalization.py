"""Coordinates in which the forms are written: logarithms relative to a reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llama_cpt.mixture_law.intervals import Number
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.table import GROUPS


class Settings(NamedTuple):
    """Arrays that broadcast against each other; logarithms are natural."""

    almr: np.ndarray
    rate: np.ndarray
    """log(learning rate) minus the mean of the measured ones."""
    size: np.ndarray
    """log(parameters / reference size)."""
    level: np.ndarray
    """log(original loss of the base / that of the base of the reference size)."""
    tokens: np.ndarray
    """log(tokens / reference budget)."""

    def share(self, group: str) -> np.ndarray:
        """Return the share of the tokens that is in the group's own languages."""
        return self.almr if group == "additional" else 1 - self.almr

    def where(self, kept: np.ndarray) -> "Settings":
        """Return the settings selected by a mask or by indices."""
        return Settings(*(values[kept] for values in self))


@dataclass(frozen=True)
class Normalization:
    """The map from raw numbers to settings.

    The reference size and budget are those with the most runs, so that the forms are centered on
    the data.
    """

    middle_rate: float
    """Mean of log(learning rate) over the distinct rates at the reference size."""
    reference_parameters: float
    reference_tokens: float
    parameters: np.ndarray
    """The sizes of known bases, ascending."""
    bases: Mapping[str, np.ndarray]
    """Base losses by group, one entry for each of ``parameters``."""
    smallest_share: Mapping[str, float]
    """The smallest measured share above 0, by group."""

    def base(self, parameters: float) -> dict[str, float]:
        """Return the base loss by group: measured, or on a power law through two nearest sizes."""
        return {group: self._base(group, parameters) for group in GROUPS}

    def _base(self, group: str, parameters: float) -> float:
        losses, sizes = self.bases[group], self.parameters
        if len(sizes) == 1:
            return float(losses[0])
        right = int(np.clip(np.searchsorted(sizes, parameters), 1, len(sizes) - 1))
        low, high = np.log(sizes[right - 1 : right + 1])
        # A straight line in log-log coordinates; beyond the known sizes it is extrapolated.
        part = (np.log(parameters) - low) / (high - low)
        return float(losses[right - 1] ** (1 - part) * losses[right] ** part)

    def settings(
        self, almr: Number, learning_rate: Number, parameters: Number, tokens: Number
    ) -> Settings:
        """Return the settings of raw numbers that broadcast."""
        # A grid repeats one size for thousands of settings: each base is computed once.
        sizes, index = np.unique(np.asarray(parameters, float), return_inverse=True)
        levels = np.log([self._base("original", size) for size in sizes])
        level = (levels - np.log(self._base("original", self.reference_parameters)))[index]
        values = (
            np.asarray(almr, float),
            np.log(learning_rate) - self.middle_rate,
            np.log(parameters) - np.log(self.reference_parameters),
            level.reshape(np.shape(parameters)),
            np.log(tokens) - np.log(self.reference_tokens),
        )
        return Settings(*np.broadcast_arrays(*values))

    def of(self, runs: RunsTable) -> Settings:
        """Return the settings of a table's runs."""
        return self.settings(runs.almr, runs.learning_rate, runs.parameters, runs.tokens)


def make_normalization(
    runs: RunsTable, known_bases: Mapping[float, Mapping[str, float]]
) -> Normalization:
    """Return the normalization of a table.

    ``known_bases`` are losses of further bases, by size and group.
    """
    reference = runs.where(at_reference(runs))
    reference_parameters = reference.parameters[0]
    same_size = runs.parameters == reference_parameters
    known = {
        size: _bases(runs.where(runs.parameters == size)) for size in np.unique(runs.parameters)
    }
    known |= {size: dict(losses) for size, losses in known_bases.items() if size not in known}
    sizes = np.array(sorted(known), float)
    shares = {"additional": runs.almr, "original": 1 - runs.almr}
    return Normalization(
        # The distinct rates, not the runs: repeated runs must not move the center.
        middle_rate=float(np.mean(np.log(np.unique(runs.learning_rate[same_size])))),
        reference_parameters=float(reference_parameters),
        reference_tokens=float(reference.tokens[0]),
        parameters=sizes,
        bases={group: np.array([known[size][group] for size in sizes]) for group in GROUPS},
        smallest_share={group: float(values[values > 0].min()) for group, values in shares.items()},
    )


def at_reference(runs: RunsTable) -> np.ndarray:
    """Return the mask of the runs at the size and budget with the most runs.

    Unknown sizes and budgets count as one value.
    """
    # NaN is not equal to itself: unknown values would all be different.
    settings = np.nan_to_num(np.stack([runs.parameters, runs.tokens]))
    _, setting, counts = np.unique(settings, axis=1, return_inverse=True, return_counts=True)
    return setting.ravel() == np.argmax(counts) if len(counts) else np.zeros(0, bool)


def _bases(runs: RunsTable) -> dict[str, float]:
    return {
        "additional": float(np.median(runs.base_additional)),
        "original": float(np.median(runs.base_original)),
    }
