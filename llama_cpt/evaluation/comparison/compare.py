"""Models on the same examples: each one's score, its difference to the first model's, its mark."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
from pathlib import PurePath

from jaxtyping import Float
import numpy as np

from llama_cpt.evaluation.comparison.settings import setting_differences, shots_of
from llama_cpt.evaluation.paired import (
    LEVEL,
    Finding,
    classify,
    corrected_level,
    ratio_intervals,
)
from llama_cpt.evaluation.scores import BITS_PER_BYTE, ExampleScore, read_scores
from llama_cpt.runtime.errors import UserError

POINTS_MARGIN = 2.0
"""A change of a score of 0 to 100 that is not felt."""
BITS_MARGIN = 0.01
"""The same for bits per byte, as a share."""
IN_POINTS = ("eqbench",)
"""Metrics of 0 to 100 to begin with."""
FEWEST_GROUPS = 20
"""With fewer, a resampling of groups says little; examples are resampled then."""


@dataclass(frozen=True)
class Difference:
    """To the first model."""

    value: float
    alone: tuple[float, float]
    """95 % for this difference by itself."""
    interval: tuple[float, float]
    """At the corrected level; the mark stands on it."""
    finding: Finding


@dataclass(frozen=True)
class Cell:
    """A model on a task."""

    score: float
    """Bits per byte, or a score of 0 to 100."""
    difference: Difference | None
    """None for the first model, and where that was not measured."""


@dataclass(frozen=True)
class Row:
    """A task, or bits per byte of one corpus."""

    name: str
    metric: str
    examples: int
    """That all models with this task have in common."""
    left_out: int
    """Examples that only some of the models have."""
    groups: int
    """That are resampled whole; 0 where examples are."""
    chance: float | None
    """The score of guesses; None where the task offers no choices."""
    less_is_better: bool
    shots: int | None
    """Worked examples before each question; None where nothing is asked."""
    cells: tuple[Cell | None, ...]
    """A model each; None where it was not measured."""

    @property
    def is_bits(self) -> bool:
        """Differences are relative."""
        return self.metric == BITS_PER_BYTE

    @property
    def margin(self) -> float:
        """As ``Difference`` is measured."""
        return BITS_MARGIN if self.is_bits else POINTS_MARGIN


@dataclass(frozen=True)
class Comparison:
    """The whole table."""

    models: tuple[str, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
    """What stands in the way of comparing."""

    @property
    def differences(self) -> int:
        """That the intervals are corrected for."""
        return sum(bool(cell and cell.difference) for row in self.rows for cell in row.cells)

    def rows_with(self, model: str, mark: Finding) -> list[str]:
        """The rows on which ``model`` bears ``mark``."""
        place = self.models.index(model)
        cells = ((row.name, row.cells[place]) for row in self.rows)
        return [n for n, c in cells if c and c.difference and c.difference.finding == mark]


@dataclass(frozen=True)
class _Measured:
    """A row's numbers: a model's score is ``sum(values) / sum(weights)``, times ``scale``."""

    name: str
    metric: str
    models: tuple[int, ...]
    values: Float[np.ndarray, "models examples"]
    """Scores, or nats."""
    weights: Float[np.ndarray, " examples"]
    """1, or bytes."""
    groups: Sequence[str]
    left_out: int
    chance: float | None
    less_is_better: bool
    shots: int | None


def compare(folders: Sequence[str]) -> Comparison:
    """The models whose scores lie in ``folders``, which give them their names; the first is base.

    Raises UserError for folders without scores and for a task of which no example is common.
    """
    models = tuple(PurePath(folder).name for folder in folders)
    if twice := [name for name, count in Counter(models).items() if count > 1]:
        raise UserError(f"two models are called {twice[0]}: give their score folders other names.")
    scores = [_rows_of(read_scores(folder)) for folder in folders]
    names = dict.fromkeys(name for found in scores for name in found)
    shots = shots_of(folders)
    measured = [
        _measured(name, [found.get(name) for found in scores], models, shots.get(name))
        for name in names
    ]
    compared = sum(len(row.models) - 1 for row in measured if 0 in row.models)
    rows = [_row(row, len(models), corrected_level(compared)) for row in measured]
    # The languages first.
    rows.sort(key=lambda row: not row.is_bits)
    remarks = [*setting_differences(folders), *_cut(scores, models)]
    return Comparison(models, tuple(rows), tuple(remarks))


def _rows_of(tasks: Mapping[str, Sequence[ExampleScore]]) -> dict[str, list[ExampleScore]]:
    """Scores by row: bits per byte are of a language, so each corpus has its own."""
    rows: dict[str, list[ExampleScore]] = {}
    for task, scores in tasks.items():
        for score in scores:
            corpus = score.group if score.metric == BITS_PER_BYTE else ""
            rows.setdefault(f"{task}: {corpus}" if corpus else task, []).append(score)
    return rows


def _cut(
    scores: Sequence[Mapping[str, Sequence[ExampleScore]]], models: Sequence[str]
) -> list[str]:
    """A sentence for each model and task of which questions lost their beginning."""
    told = []
    for model, tasks in zip(models, scores, strict=True):
        for name, found in tasks.items():
            if count := sum(bool(score.detail.get("cut")) for score in found):
                told.append(
                    f"{name}: {count:,} of {len(found):,} questions were longer than the context "
                    f"of {model} and lost their beginning."
                )
    return told


def _measured(
    name: str,
    found: Sequence[Sequence[ExampleScore] | None],
    models: Sequence[str],
    shots: int | None,
) -> _Measured:
    """The examples that all models with this row have."""
    there = {place: {s.key: s for s in scores} for place, scores in enumerate(found) if scores}
    metrics = {score.metric for scores in there.values() for score in scores.values()}
    if len(metrics) > 1:
        raise UserError(f"{name} is measured by {' and '.join(sorted(metrics))}: measure it anew.")
    common = sorted(set.intersection(*(set(scores) for scores in there.values())))
    if not common:
        told = ", ".join(models[place] for place in there)
        raise UserError(f"{name}: {told} have no example in common: evaluate them alike.")
    metric, table = metrics.pop(), [[scores[key] for key in common] for scores in there.values()]
    is_bits = metric == BITS_PER_BYTE
    values = [[score.nats if is_bits else score.score for score in row] for row in table]
    weights = [score.bytes if is_bits else 1 for score in table[0]]
    chances = [score.chance for score in table[0]]
    measured = _Measured(
        name=name,
        metric=metric,
        models=tuple(there),
        values=np.array(values, float),
        weights=np.array(weights, float),
        groups=[group for group, _ in common],
        left_out=len(set().union(*there.values())) - len(common),
        chance=None if None in chances else sum(chances) / len(chances),
        less_is_better=is_bits or table[0][0].less_is_better,
        shots=shots,
    )
    if not np.isfinite(measured.values).all() or not measured.weights.sum() > 0:
        raise UserError(f"{name}: holds scores that are no numbers: measure it anew.")
    return measured


def _row(row: _Measured, models: int, level: float) -> Row:
    is_bits = row.metric == BITS_PER_BYTE
    # Scores of 0 to 1 are told in percent.
    scale = 1 / math.log(2) if is_bits else 100.0 if _are_shares(row) else 1.0
    scores = scale * row.values.sum(1) / row.weights.sum()
    clusters = np.unique(row.groups, return_inverse=True)[1]
    grouped = not is_bits and clusters.max() + 1 >= FEWEST_GROUPS
    if not grouped:
        clusters = np.arange(len(row.weights))
    cells: list[Cell | None] = [None] * models
    for place, score in zip(row.models, scores, strict=True):
        cells[place] = Cell(float(score), None)
    if row.models[0] == 0 and len(row.models) > 1:
        found = _differences(row, clusters, scale, level)
        for place, score, difference in zip(row.models[1:], scores[1:], found, strict=True):
            cells[place] = Cell(float(score), difference)
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
    )


def _are_shares(row: _Measured) -> bool:
    """Scores of 0 to 1."""
    return row.metric not in IN_POINTS and bool((row.values == np.clip(row.values, 0, 1)).all())


def _differences(
    row: _Measured, clusters: np.ndarray, scale: float, level: float
) -> list[Difference]:
    """Of every model to the first."""
    is_bits = row.metric == BITS_PER_BYTE
    change = row.values[1:] - row.values[0]
    over = np.broadcast_to(row.values[0] if is_bits else row.weights, change.shape)
    value = change.sum(1) / over.sum(1)
    units = [_summed(part, clusters) for part in (change, over)]
    if _are_shares(row) and np.isin(row.values, (0, 1)).all():
        # Right or wrong: without one pair that differs each way, models that agree on every example
        # would differ by exactly nothing.
        units = [np.pad(part, ((0, 0), (0, 2)), constant_values=1) for part in units]
        units[0][:, -1] = -1
    intervals = ratio_intervals(*units, [LEVEL, level])
    if is_bits:
        scale = 1.0
    elif _are_shares(row):
        # A share stays one, however wide the interval of few examples.
        first = row.values[0].mean()
        intervals = np.clip(intervals, -first, 1 - first)
    alone, corrected = scale * intervals
    better = -1 if row.less_is_better else 1
    return [
        Difference(
            value=scale * float(v),
            alone=(float(a[0]), float(a[1])),
            interval=(float(c[0]), float(c[1])),
            finding=classify(*sorted(better * c), margin=BITS_MARGIN if is_bits else POINTS_MARGIN),
        )
        for v, a, c in zip(value, alone, corrected, strict=True)
    ]


def _summed(
    values: Float[np.ndarray, "pairs examples"], clusters: np.ndarray
) -> Float[np.ndarray, "pairs units"]:
    found = np.zeros((len(values), clusters.max() + 1))
    np.add.at(found, (slice(None), clusters), values)
    return found
