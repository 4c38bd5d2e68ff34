"""Results of runs as a law needs them: where each ended, how it went there, what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
import math

from jaxtyping import Float
import numpy as np

from llama_cpt.mixture_law.runs import (
    COLUMNS,
    Run,
    Unit,
    common_unit,
    finished_runs,
    require_both_groups,
    require_one_base,
    with_the_usual_corpora,
)
from llama_cpt.mixture_law.runs_table import GROUPS, RunsTable
from llama_cpt.mixture_law.table import Row, read_table
from llama_cpt.runtime.errors import UserError


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
    """Read CSV files as one table (``docs/guide/law.md`` has the format).

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
