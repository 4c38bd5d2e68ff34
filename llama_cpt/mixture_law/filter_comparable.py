"""Which runs may stand in one fit, and how far apart repeated ones are."""

from dataclasses import replace

import numpy as np

from llama_cpt.mixture_law.runs_table import GROUPS, RunsTable


def filter_comparable(points: RunsTable) -> tuple[RunsTable, list[str]]:
    """Runs of one kind, and a sentence for each kind that was left out."""
    notes: list[str] = []
    losses = (points.additional, points.original)
    whole = np.all([np.isfinite(loss) & (loss > 0) for loss in losses], axis=0)
    points = _keep(points, whole, "have no final loss", notes)
    order = _commonest(points.mixture_order)
    points = _keep(points, points.mixture_order == order, f"are not of the order {order!r}", notes)
    batches = np.nan_to_num(points.batch_tokens)
    usual = _commonest_of_size(batches, points.parameters)
    points = _keep(points, batches == usual, "have another batch than most of their size", notes)
    decayed = points.schedule != "constant"
    if decayed.any():
        left = "have an undecayed schedule, which says little about the end of a decayed one"
        points = _keep(points, decayed, left, notes)
        schedule = _commonest(points.schedule)
        left = f"have another schedule than most, {str(schedule)!r}"
        return _keep(points, points.schedule == schedule, left, notes), notes
    tokens = _commonest(points.tokens)
    if not len(points) or not np.isfinite(tokens):
        return points, notes
    left = f"are of other budgets than {tokens:g} tokens, where no schedule decays"
    return _keep(points, points.tokens == tokens, left, notes), notes


def fill_unstated(points: RunsTable) -> RunsTable:
    """Runs of an unknown size or budget count as of one; an unknown base as its highest loss."""
    parameters = _filled(points.parameters, 1.0)
    return replace(
        points,
        parameters=parameters,
        tokens=_filled(points.tokens, 1.0),
        base_additional=_filled(points.base_additional, _highest(points.additional, parameters)),
        base_original=_filled(points.base_original, _highest(points.original, parameters)),
    )


def _filled(values: np.ndarray, instead: np.ndarray | float) -> np.ndarray:
    return np.where(np.isfinite(values), values, instead)


def _highest(losses: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Of the size that each run has."""
    return np.array([losses[parameters == size].max() for size in parameters])


def _commonest(values: np.ndarray) -> np.generic | str:
    """The largest of the most frequent values."""
    if not len(values):
        return ""
    found, counts = np.unique(values, return_counts=True)
    return found[len(found) - 1 - np.argmax(counts[::-1])]


def _commonest_of_size(values: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """For each run the commonest value of its size."""
    sizes = np.nan_to_num(parameters)
    usual = {size: _commonest(values[sizes == size]) for size in np.unique(sizes)}
    return np.array([usual[size] for size in sizes])


def _keep(points: RunsTable, kept: np.ndarray, left: str, notes: list[str]) -> RunsTable:
    if not kept.all():
        notes.append(f"{int((~kept).sum())} of {len(points)} runs {left}: left out.")
    return points.where(kept)


def repeated_noise(points: RunsTable) -> dict[str, float]:
    """Standard deviation of the log loss over runs of equal settings, pooled; {} without any."""
    points = fill_unstated(points)
    settings = np.stack([points.almr, points.learning_rate, points.parameters, points.tokens])
    _, place, counts = np.unique(settings, axis=1, return_inverse=True, return_counts=True)
    freedom = int(np.sum(counts - 1))
    if not freedom:
        return {}
    found = {}
    for group in GROUPS:
        logs = np.log(getattr(points, group))
        mean = np.bincount(place.ravel(), logs) / counts
        found[group] = float(np.sqrt(np.sum((logs - mean[place.ravel()]) ** 2) / freedom))
    return found
