"""Runs as a law sees them: where each was in its settings, and where its losses ended."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

GROUPS = ("additional", "original")
"""The language that is added, and what the model knew."""


@dataclass(frozen=True)
class RunsTable:
    """Final losses of runs: arrays of one entry a run; NaN or "" where a table does not say."""

    run: np.ndarray
    pair: np.ndarray
    """Which language onto which; one name where a table has no such column."""
    almr: np.ndarray
    """Share of the tokens trained on that is additional, over the whole run."""
    learning_rate: np.ndarray
    """Peak."""
    parameters: np.ndarray
    """Without embeddings."""
    tokens: np.ndarray
    """Trained on at the end of the run."""
    batch_tokens: np.ndarray
    steps: np.ndarray
    schedule: np.ndarray
    mixture_order: np.ndarray
    seed: np.ndarray
    additional: np.ndarray
    """Final held-out loss of the group, mean of its corpora, in ``unit``."""
    original: np.ndarray
    base_additional: np.ndarray
    """The same before the first step."""
    base_original: np.ndarray
    unit: Literal["bits per byte", "nats per token"]

    def __len__(self) -> int:
        return len(self.run)

    def where(self, kept: np.ndarray) -> "RunsTable":
        """The runs of a mask or of indices."""
        arrays = {f.name: getattr(self, f.name)[kept] for f in fields(self) if f.name != "unit"}
        return replace(self, **arrays)
