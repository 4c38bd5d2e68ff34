"""Comparison of models: scores on the same examples, differences, findings, and settings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from pathlib import Path, PurePath
from typing import Any

from jaxtyping import Float
import numpy as np

from llama_cpt.evaluation.paired import (
    LEVEL,
    Finding,
    classify,
    corrected_level,
    ratio_intervals,
)
from llama_cpt.evaluation.scores import (
    BITS_PER_BYTE,
    ROW_PER_GROUP,
    SETTINGS,
    ExampleScore,
    read_scores,
    read_settings,
)
from llama_cpt.runtime.errors import UserError

POINTS_MARGIN = 2.0
"""Smallest relevant difference between scores, in points on a scale from 0 to 100."""
BITS_MARGIN = 0.01
"""Smallest relevant difference in bits per byte, as a fraction of the first model's value."""
POINTS = "score, 0 to 100"
"""Unit of scores in percent and of metrics in ``IN_POINTS``."""
IN_POINTS = ("eqbench",)
"""Metrics on a scale from 0 to 100.

All other metrics are shown in percent if all their values are in [0, 1].
"""
FEWEST_GROUPS = 20
"""Minimum number of groups for a bootstrap that resamples groups instead of examples."""
MODEL_SETTINGS = ("model", "tokenizer", "dtype")
"""Settings that are expected to differ between models."""


@dataclass(frozen=True)
class Difference:
    """The difference between the score of a model and the score of the first model."""

    value: float
    """Difference in points; for bits per byte, the relative difference as a fraction."""
    alone: tuple[float, float]
    """The 95 % interval, without a correction for the number of differences.

    Both intervals are infinite if there is only one example.
    """
    interval: tuple[float, float]
    """Interval at a level that is corrected for the number of differences in the comparison.

    This interval determines the finding.
    """
    finding: Finding


@dataclass(frozen=True)
class Cell:
    """The result of one model on one task."""

    score: float
    """Score in bits per byte, in percent (for a metric from 0 to 1) or in the metric's unit."""
    difference: Difference | None
    """Difference from the first model.

    The value is None for the first model, or if the first model has no scores for the task.
    """


@dataclass(frozen=True)
class Row:
    """A row of the comparison: one task, or one group of a task, such as a corpus."""

    name: str
    metric: str
    examples: int
    """Number of examples that all models with scores for the task have in common."""
    left_out: int
    """Number of examples that were not evaluated with all models that have scores for the task."""
    groups: int
    """Number of groups if the bootstrap resamples whole groups; 0 if it resamples examples."""
    chance: float | None
    """Score of random guesses, in the unit of ``Cell.score``.

    The value is None if the task has no answer options.
    """
    less_is_better: bool
    shots: int | None
    """Number of worked examples before each question; None if the task has no questions."""
    cells: tuple[Cell | None, ...]
    """One cell per model; None if the model has no scores for the task."""

    unit: str
    """Unit of ``Cell.score``: bits per byte, ``POINTS``, or the name of the metric."""

    @property
    def is_bits(self) -> bool:
        """True if the metric is bits per byte, for which differences are relative."""
        return self.metric == BITS_PER_BYTE

    @property
    def margin(self) -> float:
        """Smallest relevant difference, in the unit of ``Difference.value``."""
        return BITS_MARGIN if self.is_bits else POINTS_MARGIN


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison, as a table with a column for each model."""

    models: tuple[str, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
    """Sentences about truncated questions and different settings, which can explain differences."""

    @property
    def differences(self) -> int:
        """Number of differences in the table; the intervals are corrected for this number."""
        return sum(bool(cell and cell.difference) for row in self.rows for cell in row.cells)

    def rows_with(self, model: str, mark: Finding) -> list[str]:
        """Return the names of the rows in which ``model`` has the finding ``mark``."""
        column = self.models.index(model)
        cells = ((row.name, row.cells[column]) for row in self.rows)
        return [n for n, c in cells if c and c.difference and c.difference.finding == mark]


@dataclass(frozen=True)
class _Measured:
    """The values from which one row is computed.

    The score of a model is ``sum(values) / sum(weights)`` times a factor that sets the unit.
    """

    name: str
    metric: str
    models: tuple[int, ...]
    """Indices of the models that have scores for the row."""
    values: Float[np.ndarray, "models examples"]
    """Score of each example; for bits per byte, the example's negative log-likelihood in nats."""
    weights: Float[np.ndarray, " examples"]
    """1 for each example; for bits per byte, the number of UTF-8 bytes of the example."""
    groups: Sequence[str]
    left_out: int
    chance: float | None
    less_is_better: bool
    shots: int | None


def compare(folders: Sequence[str]) -> Comparison:
    """Compare the first model with each of the remaining models.

    Each folder contains the scores of one model, and the name of the folder is the name of the
    model. Raises UserError if a folder contains no scores, if two folders have the same name, or if
    the models have no example of a task in common.
    """
    models = tuple(PurePath(folder).name for folder in folders)
    if twice := [name for name, count in Counter(models).items() if count > 1]:
        raise UserError(f"two models are named {twice[0]}; rename one of their score folders.")
    scores = [_rows_of(read_scores(folder)) for folder in folders]
    names = dict.fromkeys(name for found in scores for name in found)
    shots = shots_of(folders)
    measured = [
        _measured(name, [found.get(name) for found in scores], models, shots.get(name))
        for name in names
    ]
    compared = sum(len(row.models) - 1 for row in measured if 0 in row.models)
    rows = [_row(row, len(models), corrected_level(compared)) for row in measured]
    # Bits per byte come first.
    rows.sort(key=lambda row: not row.is_bits)
    remarks = [*setting_differences(folders), *_cut_remarks(scores, models)]
    return Comparison(models, tuple(rows), tuple(remarks))


def _rows_of(tasks: Mapping[str, Sequence[ExampleScore]]) -> dict[str, list[ExampleScore]]:
    """Group scores by row of the comparison.

    A metric in ``ROW_PER_GROUP`` has one row per group, such as a corpus or a language. All other
    metrics have one row per task.
    """
    rows: dict[str, list[ExampleScore]] = {}
    for task, scores in tasks.items():
        for score in scores:
            group = score.group if score.metric in ROW_PER_GROUP else ""
            rows.setdefault(f"{task}: {group}" if group else task, []).append(score)
    return rows


def _cut_remarks(
    scores: Sequence[Mapping[str, Sequence[ExampleScore]]], models: Sequence[str]
) -> list[str]:
    """Return a sentence for each model and task with truncated questions."""
    remarks = []
    for model, tasks in zip(models, scores, strict=True):
        for name, found in tasks.items():
            if count := sum(bool(score.detail.get("cut")) for score in found):
                remarks.append(
                    f"{name}: {count:,} of {len(found):,} questions were longer than the context "
                    f"of {model} and were truncated on the left."
                )
    return remarks


def _measured(
    name: str,
    found: Sequence[Sequence[ExampleScore] | None],
    models: Sequence[str],
    shots: int | None,
) -> _Measured:
    """Return the values of the examples that all models with scores for the row have in common."""
    by_model = {column: {s.key: s for s in scores} for column, scores in enumerate(found) if scores}
    metrics = {score.metric for scores in by_model.values() for score in scores.values()}
    if len(metrics) > 1:
        raise UserError(
            f"{name}: the models have different metrics ({', '.join(sorted(metrics))}); evaluate "
            "them again with the same task."
        )
    common = sorted(set.intersection(*(set(scores) for scores in by_model.values())))
    if not common:
        names = ", ".join(models[column] for column in by_model)
        raise UserError(
            f"{name}: {names} have no example in common; evaluate them on the same data."
        )
    metric, table = metrics.pop(), [[scores[key] for key in common] for scores in by_model.values()]
    is_bits = metric == BITS_PER_BYTE
    values = [[score.nats if is_bits else score.score for score in row] for row in table]
    weights = [score.bytes if is_bits else 1 for score in table[0]]
    chances = [score.chance for score in table[0] if score.chance is not None]
    measured = _Measured(
        name=name,
        metric=metric,
        models=tuple(by_model),
        values=np.array(values, float),
        weights=np.array(weights, float),
        groups=[group for group, _ in common],
        left_out=len(set().union(*by_model.values())) - len(common),
        chance=sum(chances) / len(chances) if len(chances) == len(table[0]) else None,
        less_is_better=is_bits or table[0][0].less_is_better,
        shots=shots,
    )
    if not np.isfinite(measured.values).all() or not measured.weights.sum() > 0:
        raise UserError(f"{name}: has scores that are not finite; delete them and evaluate again.")
    return measured


def _row(row: _Measured, models: int, level: float) -> Row:
    is_bits = row.metric == BITS_PER_BYTE
    # Scores in [0, 1] are converted to percent, nats per byte to bits per byte.
    scale = 1 / math.log(2) if is_bits else 100.0 if _are_shares(row) else 1.0
    scores = scale * row.values.sum(1) / row.weights.sum()
    clusters = np.unique(row.groups, return_inverse=True)[1]
    grouped = not is_bits and clusters.max() + 1 >= FEWEST_GROUPS
    if not grouped:
        clusters = np.arange(len(row.weights))
    cells: list[Cell | None] = [None] * models
    for column, score in zip(row.models, scores, strict=True):
        cells[column] = Cell(float(score), None)
    if row.models[0] == 0 and len(row.models) > 1:
        found = _differences(row, clusters, scale, level)
        for column, score, difference in zip(row.models[1:], scores[1:], found, strict=True):
            cells[column] = Cell(float(score), difference)
    return Row(
        name=row.name,
        metric=row.metric,
        examples=len(row.weights),
        left_out=row.left_out,
        groups=int(clusters.max() + 1) if grouped else 0,
        chance=None if row.chance is None else scale * row.chance,
        less_is_better=row.less_is_better,
        shots=row.shots,
        cells=tuple(cells),
        unit=_unit(row),
    )


def _unit(row: _Measured) -> str:
    if row.metric == BITS_PER_BYTE:
        return "bits per byte"
    return POINTS if _are_shares(row) or row.metric in IN_POINTS else row.metric


def _are_shares(row: _Measured) -> bool:
    """Return whether all scores of the row are fractions in [0, 1]."""
    return row.metric not in IN_POINTS and bool((row.values == np.clip(row.values, 0, 1)).all())


def _differences(
    row: _Measured, clusters: np.ndarray, scale: float, level: float
) -> list[Difference]:
    """Return the difference from the first model for each of the remaining models."""
    is_bits = row.metric == BITS_PER_BYTE
    change = row.values[1:] - row.values[0]
    over = np.broadcast_to(row.values[0] if is_bits else row.weights, change.shape)
    value = change.sum(1) / over.sum(1)
    changes, overs = _summed(change, clusters), _summed(over, clusters)
    if clusters.max() > 0 and _are_shares(row) and np.isin(row.values, (0, 1)).all():
        # If every answer is right or wrong, add one example that only the first model gets right
        # and one that only the compared model gets right. Without these two examples, the interval
        # of models that agree on all examples would have width zero, however few examples there
        # are. ``value`` does not change. (Agresti and Min 2005, Statistics in Medicine 24, add
        # pseudo-counts to matched pairs for the same reason.)
        changes, overs = (
            np.pad(part, ((0, 0), (0, 2)), constant_values=1) for part in (changes, overs)
        )
        changes[:, -1] = -1
    intervals = ratio_intervals(changes, overs, [LEVEL, level])
    if is_bits:
        scale = 1.0
    elif _are_shares(row) and clusters.max() > 0:
        # The compared model's score is in [0, 1], which limits the difference.
        first = row.values[0].mean()
        intervals = np.clip(intervals, -first, 1 - first)
    alone, corrected = scale * intervals
    better = -1 if row.less_is_better else 1
    return [
        Difference(
            value=scale * float(v),
            alone=(float(a[0]), float(a[1])),
            interval=(float(c[0]), float(c[1])),
            finding=classify(
                float((better * c).min()),
                float((better * c).max()),
                margin=BITS_MARGIN if is_bits else POINTS_MARGIN,
            ),
        )
        for v, a, c in zip(value, alone, corrected, strict=True)
    ]


def _summed(
    values: Float[np.ndarray, "pairs examples"], clusters: np.ndarray
) -> Float[np.ndarray, "pairs units"]:
    found = np.zeros((len(values), clusters.max() + 1))
    np.add.at(found.T, clusters, values.T)
    return found


def shots_of(folders: Sequence[str]) -> dict[str, int]:
    """Return the number of worked examples before each question, by task.

    The number is from the settings of the first model that has scores for the task.
    """
    found: dict[str, int] = {}
    for file in (f for folder in folders for f in sorted(Path(folder).glob(f"*{SETTINGS}"))):
        settings = read_settings(file)
        if type(settings.get("shots")) is int:
            found.setdefault(file.name.removesuffix(SETTINGS), settings["shots"])
    return found


def setting_differences(folders: Sequence[str]) -> list[str]:
    """Return a sentence for each model and task with settings that differ from the first model's.

    Here the first model of a task is the first model that has scores for the task. The settings in
    ``MODEL_SETTINGS`` are ignored.
    """
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    sentences = []
    for folder in map(Path, folders):
        for file in sorted(folder.glob(f"*{SETTINGS}")):
            task, settings = file.name.removesuffix(SETTINGS), read_settings(file)
            name, before = first.setdefault(task, (folder.name, settings))
            names = sorted(set(before | settings) - set(MODEL_SETTINGS))
            changed = [name for name in names if before.get(name) != settings.get(name)]
            if changed:
                sentences.append(
                    f"{task}: {folder.name} and {name} were evaluated with different settings "
                    f"({', '.join(changed)}), which can explain a difference; use the same texts, "
                    "worked examples and chat template for both."
                )
    return sentences
