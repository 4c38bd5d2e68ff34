"""Results of runs as a law needs them: where each ended, how it went there, what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
import math
from typing import Literal

from jaxtyping import Float
import numpy as np

from llama_cpt.mixture_law.table import (
    COLUMNS,
    GROUPS,
    Row,
    Run,
    Unit,
    common_unit,
    finished_runs,
    read_table,
    require_both_groups,
    require_one_base,
    with_the_usual_corpora,
)
from llama_cpt.runtime.errors import UserError


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


@dataclass(frozen=True)
class Curve:
    """Losses of the two groups inside one run."""

    tokens: Float[np.ndarray, " evaluations"]
    """Trained on by then. A run that goes on from another's stable part begins late."""
    additional: Float[np.ndarray, " evaluations"]
    original: Float[np.ndarray, " evaluations"]


@dataclass(frozen=True)
class Results:
    """One table out of one or more files."""

    runs: RunsTable
    """The last evaluation of every run that has one."""
    curves: tuple[Curve, ...]
    """Inside the runs, in the order of ``points``."""
    corpora: Mapping[str, tuple[str, ...]]
    """Held-out corpora by group."""
    left_out: tuple[str, ...]
    """What is not in ``points`` and why, a sentence each."""
    remarks: tuple[str, ...]
    """What a reader should know of the table, a sentence each."""
    files: Mapping[str, str]
    """SHA-256 by path."""


def read_results(paths: Sequence[str]) -> Results:
    """Read CSV files as one table (``docs/law.md`` has the format).

    Raises UserError where the table cannot be understood or its losses cannot be compared. A run
    that diverged or did not finish is left out, and ``left_out`` says so.
    """
    where = ", ".join(paths)
    files = [read_table(path) for path in paths]
    rows = [row for file in files for row in file.rows]
    runs, unfinished = finished_runs(rows)
    require_both_groups(runs, where)
    runs, other_corpora = with_the_usual_corpora(runs)
    require_both_groups(runs, where)
    _require_ratios(runs, where)
    _require_all_or_none(runs, "parameters", "tokens", "learning_rate")
    unit = common_unit(rows)
    require_one_base(rows, unit)
    points = _points(runs, unit)
    return Results(
        runs=points,
        curves=tuple(_curve(run, unit) for run in runs),
        corpora={group: _corpora(runs, group) for group in GROUPS},
        left_out=(*unfinished, *other_corpora),
        remarks=(*_tokenizers(rows), *_no_base(points, rows)),
        files={file.path: file.sha256 for file in files},
    )


def _require_ratios(runs: Sequence[Run], where: str) -> None:
    ratios = {run.rows[0].almr for run in runs}
    if len(ratios) == 1:
        raise UserError(
            f"{where}: every run has almr={ratios.pop():g}; a ratio cannot be chosen from one. "
            f"Add runs at another."
        )


def _require_all_or_none(runs: Sequence[Run], *names: str) -> None:
    """What a table says of one run it says of all, or they cannot be told apart."""
    for name in names:
        unsaid = [run.last[0] for run in runs if math.isnan(getattr(run.last[0], name))]
        if unsaid and len(unsaid) < len(runs):
            raise UserError(
                f"{unsaid[0].place}: {name} is empty, but other runs have it; fill it in, or empty "
                f"the column if it was one for all."
            )


def _corpora(runs: Sequence[Run], group: str) -> tuple[str, ...]:
    return tuple(sorted({name for run in runs for of, name in run.corpora if of == group}))


def _points(runs: Sequence[Run], unit: Unit) -> RunsTable:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(run.last[0], name) for run in runs])

    def means(name: str, group: str) -> np.ndarray:
        return np.array([_mean(run.last, name, group) for run in runs])

    loss = COLUMNS[unit]
    return RunsTable(
        run=column("run"),
        pair=column("pair"),
        almr=column("almr"),
        learning_rate=column("learning_rate"),
        parameters=column("parameters"),
        tokens=column("tokens"),
        batch_tokens=column("batch_tokens"),
        steps=column("step"),
        schedule=column("schedule"),
        mixture_order=column("mixture_order"),
        seed=column("seed"),
        additional=means(loss, "additional"),
        original=means(loss, "original"),
        base_additional=means(f"base_{loss}", "additional"),
        base_original=means(f"base_{loss}", "original"),
        unit=unit,
    )


def _mean(rows: Sequence[Row], column: str, group: str) -> float:
    return float(np.mean([getattr(row, column) for row in rows if row.group == group]))


def _curve(run: Run, unit: Unit) -> Curve:
    """The evaluations of a run that measured every corpus of its last."""
    found = []
    for _, rows in groupby(run.rows, key=lambda row: row.progress):
        rows = list(rows)
        if len(rows) == len(run.last):
            losses = (_mean(rows, COLUMNS[unit], group) for group in GROUPS)
            found.append((rows[0].tokens, *losses))
    return Curve(*np.array(found, float).T)


def _tokenizers(rows: Sequence[Row]) -> list[str]:
    count = len({row.tokenizer for row in rows if row.measured})
    return [f"{count} tokenizers: bits per byte are compared, never nats."] if count > 1 else []


def _no_base(points: RunsTable, rows: Sequence[Row]) -> list[str]:
    """That a bound on forgetting cannot be asked, where the base's loss is not there."""
    if not np.isnan(points.base_original).any():
        return []
    column = f"base_{COLUMNS[points.unit]}"
    other = "base_loss" if points.unit == "bits per byte" else "base_bits_per_byte"
    elsewhere = not all(math.isnan(getattr(row, other)) for row in rows)
    told = f" ({other} is there, but losses are compared in {points.unit})" if elsewhere else ""
    return [
        f"{column} of the original group is empty in some rows{told}: a bound on forgetting cannot "
        f"be asked, only weights."
    ]


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
