"""Settings of which none is better in both losses."""

import numpy as np

from llama_cpt.mixture_law.law import Pareto
from llama_cpt.mixture_law.normalization import at_reference
from llama_cpt.mixture_law.optima import OptimumAt
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.surface import Surface

CELLS = 41
"""Ratios, and rates, of the grid that is predicted."""


def predicted_front(surface: Surface, place: OptimumAt) -> Pareto:
    """Of a fine grid over what was measured."""
    domain = place.domain
    almr, rate = np.meshgrid(
        np.linspace(*domain.measured_almr, CELLS),
        np.linspace(*domain.measured_rate, CELLS),
    )
    almr, learning_rate = almr.ravel(), np.exp(rate.ravel() + place.middle_rate)
    at = surface.normalization.settings(almr, learning_rate, place.parameters, place.tokens)
    home = surface.normalization.base(surface.normalization.reference_parameters)
    additional, original = (
        home[group] * np.exp(surface.groups[group].center(at))
        for group in ("additional", "original")
    )
    return _front(almr, learning_rate, additional, original, np.full(len(almr), ""))


def measured_front(points: RunsTable) -> Pareto:
    """Of the runs at the home size and budget."""
    points = points.where(at_reference(points))
    return _front(points.almr, points.learning_rate, points.additional, points.original, points.run)


def _front(
    almr: np.ndarray,
    learning_rate: np.ndarray,
    additional: np.ndarray,
    original: np.ndarray,
    run: np.ndarray,
) -> Pareto:
    order = np.lexsort((original, additional))
    lowest = np.minimum.accumulate(np.concatenate([[np.inf], original[order][:-1]]))
    kept = order[original[order] < lowest]
    return Pareto(almr[kept], learning_rate[kept], additional[kept], original[kept], run[kept])
