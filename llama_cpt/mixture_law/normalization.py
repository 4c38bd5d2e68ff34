"""Normalized coordinates of the loss surface: logarithms relative to a reference size and budget.

A form is an equation for the loss in these coordinates (see ``forms.py``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llama_cpt.mixture_law.intervals import Number
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.table import GROUPS


class Settings(NamedTuple):
    """Normalized settings of runs or predictions, as arrays that broadcast against each other.

    Logarithms are natural.
    """

    almr: np.ndarray
    rate: np.ndarray
    """log(peak learning rate) minus its mean over the grid (``Normalization.middle_rate``)."""
    size: np.ndarray
    """log(parameters / reference parameters)."""
    level: np.ndarray
    """log(L / L of the reference size) for the original loss L of the base model."""
    tokens: np.ndarray
    """log(trained tokens / reference tokens)."""

    def share(self, group: str) -> np.ndarray:
        """Return the share of all tokens that are in the languages of ``group``."""
        return self.almr if group == "additional" else 1 - self.almr

    def where(self, kept: np.ndarray) -> "Settings":
        """Return the settings selected by a mask or by indices."""
        return Settings(*(values[kept] for values in self))


@dataclass(frozen=True)
class Normalization:
    """The map from raw settings (ALMR, learning rate, parameters, tokens) to ``Settings``.

    The reference is the combination of model size and token budget with the most runs, so that the
    coordinates are centered on the data.
    """

    middle_rate: float
    """Mean of log(learning rate) over the distinct learning rates at the reference size."""
    reference_parameters: float
    reference_tokens: float
    parameters: np.ndarray
    """Sizes of the base models with known losses, ascending."""
    bases: Mapping[str, np.ndarray]
    """Known losses of base models by language group, in the order of ``parameters``."""
    smallest_share: Mapping[str, float]
    """Smallest token share above 0 among the runs, by language group."""

    def base(self, parameters: float) -> dict[str, float]:
        """Return the base-model loss at a model size, by language group.

        An unknown loss is interpolated or extrapolated by the power law through the losses at
        the two nearest known sizes.
        """
        return {group: self._base(group, parameters) for group in GROUPS}

    def _base(self, group: str, parameters: float) -> float:
        losses, sizes = self.bases[group], self.parameters
        if len(sizes) == 1:
            return float(losses[0])
        right = int(np.clip(np.searchsorted(sizes, parameters), 1, len(sizes) - 1))
        low, high = np.log(sizes[right - 1 : right + 1])
        # A power law is a straight line in log-log coordinates.
        part = (np.log(parameters) - low) / (high - low)
        return float(losses[right - 1] ** (1 - part) * losses[right] ** part)

    def settings(
        self, almr: Number, learning_rate: Number, parameters: Number, tokens: Number
    ) -> Settings:
        """Return the normalized settings; the arguments broadcast against each other."""
        # A grid has thousands of entries of one model size: compute each base-model loss once.
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
        """Return the normalized settings of the runs."""
        return self.settings(runs.almr, runs.learning_rate, runs.parameters, runs.tokens)


def make_normalization(
    runs: RunsTable, known_bases: Mapping[float, Mapping[str, float]]
) -> Normalization:
    """Return the normalization that is centered on the runs of the reference size and budget.

    ``known_bases`` contains base-model losses, by model size and group, for sizes without runs.
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
        # The mean is over distinct learning rates, so that repeated runs do not shift it.
        middle_rate=float(np.mean(np.log(np.unique(runs.learning_rate[same_size])))),
        reference_parameters=float(reference_parameters),
        reference_tokens=float(reference.tokens[0]),
        parameters=sizes,
        bases={group: np.array([known[size][group] for size in sizes]) for group in GROUPS},
        smallest_share={group: float(values[values > 0].min()) for group, values in shares.items()},
    )


def at_reference(runs: RunsTable) -> np.ndarray:
    """Return the mask of the runs at the model size and token budget with the most runs.

    All unknown sizes count as equal, and so do all unknown budgets.
    """
    # NaN is not equal to itself, so without a replacement all unknown values would differ.
    settings = np.nan_to_num(np.stack([runs.parameters, runs.tokens]))
    _, setting, counts = np.unique(settings, axis=1, return_inverse=True, return_counts=True)
    return setting.ravel() == np.argmax(counts) if len(counts) else np.zeros(0, bool)


def _bases(runs: RunsTable) -> dict[str, float]:
    """Return the base-model losses of runs of one model size, by language group."""
    # The values differ only by rounding (``table.BASE_TOLERANCE``).
    return {
        "additional": float(np.median(runs.base_additional)),
        "original": float(np.median(runs.base_original)),
    }
