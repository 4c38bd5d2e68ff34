"""Tables of runs: final losses as columns, learning curves, and which runs are comparable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
import math

from jaxtyping import Float
import numpy as np

from llama_cpt.mixture_law.table import (
    GROUPS,
    LOSS_COLUMNS,
    Row,
    Run,
    Unit,
    common_unit,
    finished_runs,
    read_table,
    require_both_groups,
    require_one_base,
    with_common_corpora,
)
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class RunsTable:
    """Final losses of runs: arrays with one entry per run; NaN or "" for unknown values."""

    run: np.ndarray
    pair: np.ndarray
    """Name of the language pair; one value if a table has no such column."""
    almr: np.ndarray
    """Additional language mixture ratio: share of all trained tokens that is additional."""
    learning_rate: np.ndarray
    """Peak learning rate."""
    parameters: np.ndarray
    """Number of parameters without embeddings."""
    tokens: np.ndarray
    """Number of tokens trained on at the end of the run."""
    batch_tokens: np.ndarray
    steps: np.ndarray
    schedule: np.ndarray
    mixture_order: np.ndarray
    seed: np.ndarray
    additional: np.ndarray
    """Final held-out loss of the group, the mean of its corpora, in ``unit``."""
    original: np.ndarray
    base_additional: np.ndarray
    """The same loss before the first step."""
    base_original: np.ndarray
    unit: Unit

    def __len__(self) -> int:
        return len(self.run)

    def where(self, kept: np.ndarray) -> "RunsTable":
        """Return the runs selected by a mask or by indices."""
        arrays = {f.name: getattr(self, f.name)[kept] for f in fields(self) if f.name != "unit"}
        return replace(self, **arrays)


@dataclass(frozen=True)
class Curve:
    """Losses of the two groups during one run."""

    tokens: Float[np.ndarray, " evaluations"]
    """Tokens trained on at each evaluation; a run that branches off another begins late."""
    additional: Float[np.ndarray, " evaluations"]
    original: Float[np.ndarray, " evaluations"]


@dataclass(frozen=True)
class Results:
    """One table of runs, read from one or more files."""

    runs: RunsTable
    """The last evaluation of every run that finished."""
    curves: tuple[Curve, ...]
    """The learning curve of each run, in the order of ``runs``."""
    corpora: Mapping[str, tuple[str, ...]]
    """Held-out corpora by group."""
    left_out: tuple[str, ...]
    """Runs that are not in ``runs``, with the reason, one sentence each."""
    remarks: tuple[str, ...]
    """Limitations of the table, one sentence each."""
    files: Mapping[str, str]
    """SHA-256 digests by path."""


def read_results(paths: Sequence[str]) -> Results:
    """Read CSV files as one table (``docs/guide/law.md`` describes the format).

    A run that diverged or did not finish is left out and listed in ``left_out``. Raises UserError
    if the table is invalid or its losses are not comparable.
    """
    where = ", ".join(paths)
    files = [read_table(path) for path in paths]
    rows = [row for file in files for row in file.rows]
    runs, unfinished = finished_runs(rows)
    require_both_groups(runs, where)
    runs, other_corpora = with_common_corpora(runs)
    require_both_groups(runs, where)
    _require_ratios(runs, where)
    _require_all_or_none(runs, "parameters", "tokens", "learning_rate")
    unit = common_unit(rows)
    require_one_base(rows, unit)
    table = _runs_table(runs, unit)
    return Results(
        runs=table,
        curves=tuple(_curve(run, unit) for run in runs),
        corpora={group: _corpora(runs, group) for group in GROUPS},
        left_out=(*unfinished, *other_corpora),
        remarks=(*_tokenizers(rows), *_no_base(table, rows)),
        files={file.path: file.sha256 for file in files},
    )


def _require_ratios(runs: Sequence[Run], where: str) -> None:
    ratios = {run.rows[0].almr for run in runs}
    if len(ratios) == 1:
        raise UserError(
            f"{where}: every run has almr={ratios.pop():g}, and a choice needs at least two "
            f"ratios; add runs at another ratio."
        )


def _require_all_or_none(runs: Sequence[Run], *names: str) -> None:
    """Raise UserError if a column is filled in for some of the runs only.

    Runs with an empty cell could otherwise not be grouped by that column.
    """
    for name in names:
        unstated = [run.last[0] for run in runs if math.isnan(getattr(run.last[0], name))]
        if unstated and len(unstated) < len(runs):
            raise UserError(
                f"{unstated[0].location}: {name} is empty, but other runs have it; fill it in, or "
                f"clear the column if all runs share one value."
            )


def _corpora(runs: Sequence[Run], group: str) -> tuple[str, ...]:
    return tuple(sorted({name for run in runs for of, name in run.corpora if of == group}))


def _runs_table(runs: Sequence[Run], unit: Unit) -> RunsTable:
    def column(name: str) -> np.ndarray:
        return np.array([getattr(run.last[0], name) for run in runs])

    def means(name: str, group: str) -> np.ndarray:
        return np.array([_mean(run.last, name, group) for run in runs])

    loss = LOSS_COLUMNS[unit]
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
    """Return the evaluations of a run that measured all corpora of its last evaluation."""
    found = []
    for _, rows in groupby(run.rows, key=lambda row: row.progress):
        rows = list(rows)
        # A mean over fewer corpora would be another quantity.
        if len(rows) == len(run.last):
            losses = (_mean(rows, LOSS_COLUMNS[unit], group) for group in GROUPS)
            found.append((rows[0].tokens, *losses))
    return Curve(*np.array(found, float).T)


def _tokenizers(rows: Sequence[Row]) -> list[str]:
    count = len({row.tokenizer for row in rows if row.measured})
    remark = f"The table has {count} tokenizers: losses are compared in bits per byte."
    return [remark] if count > 1 else []


def _no_base(runs: RunsTable, rows: Sequence[Row]) -> list[str]:
    """Return a remark if a bound on forgetting is not available for lack of base losses."""
    if not np.isnan(runs.base_original).any():
        return []
    column = f"base_{LOSS_COLUMNS[runs.unit]}"
    other = "base_loss" if runs.unit == "bits per byte" else "base_bits_per_byte"
    elsewhere = not all(math.isnan(getattr(row, other)) for row in rows)
    other_unit = f" ({other} is given, but losses are in {runs.unit})" if elsewhere else ""
    return [
        f"{column} of the original group is empty in some rows{other_unit}: a bound on forgetting "
        f"is not available, only weights."
    ]


def filter_comparable(runs: RunsTable) -> tuple[RunsTable, list[str]]:
    """Return the runs that one fit may use, and a sentence for each kind of run left out.

    A run's final loss also depends on the mixture order, the batch size and the schedule, which the
    law does not model: the most frequent value of each is kept.
    """
    notes: list[str] = []
    losses = (runs.additional, runs.original)
    finite = np.all([np.isfinite(loss) & (loss > 0) for loss in losses], axis=0)
    runs = _keep_runs(runs, finite, "have no final loss", notes)
    order = _commonest(runs.mixture_order)
    same_order = runs.mixture_order == order
    runs = _keep_runs(runs, same_order, f"have another mixture order than {order!r}", notes)
    batches = np.nan_to_num(runs.batch_tokens)
    usual = _commonest_of_size(batches, runs.parameters)
    reason = "have another batch size than most runs of their model size"
    runs = _keep_runs(runs, batches == usual, reason, notes)
    # A decayed run ends well below an undecayed one, so the two kinds never share a fit.
    decayed = runs.schedule != "constant"
    if decayed.any():
        runs = _keep_runs(runs, decayed, "have an undecayed schedule", notes)
        schedule = _commonest(runs.schedule)
        reason = f"have another schedule than most, {str(schedule)!r}"
        return _keep_runs(runs, runs.schedule == schedule, reason, notes), notes
    # Constant schedules of different budgets are prefixes of one another: one budget is kept.
    tokens = _commonest(runs.tokens)
    if not len(runs) or not np.isfinite(tokens):
        return runs, notes
    reason = f"have a constant schedule and another budget than {tokens:g} tokens"
    return _keep_runs(runs, runs.tokens == tokens, reason, notes), notes


def fill_unstated(runs: RunsTable) -> RunsTable:
    """Replace unknown sizes and budgets by 1, unknown base losses by the highest of the size."""
    parameters = _filled(runs.parameters, 1.0)
    return replace(
        runs,
        parameters=parameters,
        tokens=_filled(runs.tokens, 1.0),
        base_additional=_filled(runs.base_additional, _highest(runs.additional, parameters)),
        base_original=_filled(runs.base_original, _highest(runs.original, parameters)),
    )


def _filled(values: np.ndarray, replacement: np.ndarray | float) -> np.ndarray:
    return np.where(np.isfinite(values), values, replacement)


def _highest(losses: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Return, for each run, the highest loss of its size."""
    return np.array([losses[parameters == size].max() for size in parameters])


def _commonest(values: np.ndarray) -> np.generic | str:
    """Return the most frequent value, the largest of several."""
    if not len(values):
        return ""
    found, counts = np.unique(values, return_counts=True)
    # ``np.unique`` sorts ascending, so the last maximum is the largest value.
    return found[len(found) - 1 - np.argmax(counts[::-1])]


def _commonest_of_size(values: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Return, for each run, the most frequent value among runs of its size."""
    sizes = np.nan_to_num(parameters)
    usual = {size: _commonest(values[sizes == size]) for size in np.unique(sizes)}
    return np.array([usual[size] for size in sizes])


def _keep_runs(runs: RunsTable, kept: np.ndarray, reason: str, notes: list[str]) -> RunsTable:
    if not kept.all():
        notes.append(f"{int((~kept).sum())} of {len(runs)} runs {reason}: left out.")
    return runs.where(kept)


def repeated_noise(runs: RunsTable) -> dict[str, float]:
    """Return the standard deviation of the log loss over runs of equal settings by group.

    The variance is pooled over all repeated settings; empty if no setting was repeated.
    """
    runs = fill_unstated(runs)
    settings = np.stack([runs.almr, runs.learning_rate, runs.parameters, runs.tokens])
    # Runs of one column of ``settings`` are repeats, which differ by the seed only.
    _, setting, counts = np.unique(settings, axis=1, return_inverse=True, return_counts=True)
    degrees_of_freedom = int(np.sum(counts - 1))
    if not degrees_of_freedom:
        return {}
    found = {}
    for group in GROUPS:
        logs = np.log(getattr(runs, group))
        mean = np.bincount(setting.ravel(), logs) / counts
        squares = np.sum((logs - mean[setting.ravel()]) ** 2)
        found[group] = float(np.sqrt(squares / degrees_of_freedom))
    return found
