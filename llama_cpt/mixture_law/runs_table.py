"""Tables of runs as arrays: final losses, learning curves and the selection of comparable runs."""

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
    finished_runs,
    read_table,
    require_one_base,
    with_common_corpora,
)
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class RunsTable:
    """Settings and final losses of runs, as arrays with one entry per run.

    An unknown value is NaN or "".
    """

    run: np.ndarray
    pair: np.ndarray
    """Language pair; "" for all runs if the table has no column ``pair``."""
    almr: np.ndarray
    """Additional-language mixture ratio: the share of additional tokens in the run."""
    learning_rate: np.ndarray
    """Peak learning rate."""
    parameters: np.ndarray
    """Number of model parameters without embeddings."""
    tokens: np.ndarray
    """Number of trained tokens at the end of the run."""
    batch_tokens: np.ndarray
    steps: np.ndarray
    schedule: np.ndarray
    mixture_order: np.ndarray
    seed: np.ndarray
    additional: np.ndarray
    """Final loss of the additional group in ``unit``: the mean over its held-out corpora."""
    original: np.ndarray
    """Final loss of the original group in ``unit``: the mean over its held-out corpora."""
    base_additional: np.ndarray
    """Loss of the base model, before the first step, on the additional group."""
    base_original: np.ndarray
    """Loss of the base model, before the first step, on the original group."""
    unit: Unit

    def __len__(self) -> int:
        return len(self.run)

    def where(self, kept: np.ndarray) -> "RunsTable":
        """Return the runs selected by a mask or by indices."""
        arrays = {f.name: getattr(self, f.name)[kept] for f in fields(self) if f.name != "unit"}
        return replace(self, **arrays)


@dataclass(frozen=True)
class Curve:
    """Losses of both groups at the evaluations of one run.

    A run that starts from a checkpoint of another run has evaluations only after that checkpoint.
    """

    tokens: Float[np.ndarray, " evaluations"]
    """Trained tokens at each evaluation."""
    additional: Float[np.ndarray, " evaluations"]
    original: Float[np.ndarray, " evaluations"]


@dataclass(frozen=True)
class Results:
    """One table of runs, read from one or more files."""

    runs: RunsTable
    """Settings and final losses of the finished runs."""
    curves: tuple[Curve, ...]
    """Learning curve of each run, in the order of ``runs``."""
    corpora: Mapping[str, tuple[str, ...]]
    """Names of the held-out corpora by language group."""
    left_out: tuple[str, ...]
    """One sentence per run that is not in ``runs``, with the reason."""
    remarks: tuple[str, ...]
    """Limitations of the table, one sentence each."""
    files: Mapping[str, str]
    """SHA-256 digest of each file, by path."""


def read_results(paths: Sequence[str]) -> Results:
    """Return the runs of CSV files that together form one table.

    ``docs/guide/law.md`` describes the format. Runs that diverged or did not finish, and runs that
    were evaluated on different held-out corpora than most runs, are omitted and listed in
    ``left_out``. Raises UserError if the table is invalid, the losses are not comparable, or all
    runs have the same ALMR.
    """
    where = ", ".join(paths)
    files = [read_table(path) for path in paths]
    rows = [row for file in files for row in file.rows]
    runs, unfinished = finished_runs(rows)
    _require_both_groups(runs, where)
    runs, other_corpora = with_common_corpora(runs)
    # Check again, because the most common set of corpora can lack a group.
    _require_both_groups(runs, where)
    _require_ratios(runs, where)
    _require_all_or_none(runs, "parameters", "tokens", "learning_rate")
    unit = _common_unit(rows)
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


def _require_both_groups(runs: Sequence[Run], where: str) -> None:
    """Raise UserError if a language group has no corpus with a loss in any run.

    ``where`` is the list of files for the error message.
    """
    groups = {group for run in runs for group, _ in run.corpora}
    missing = [group for group in GROUPS if group not in groups]
    if missing:
        unfinished = "" if groups else " (check that a run has finished)"
        raise UserError(
            f"{where}: no row of group {missing[0]!r} has a loss{unfinished}; evaluate a held-out "
            f"corpus of each group."
        )


def _common_unit(rows: Sequence[Row]) -> Unit:
    """Return the unit in which all losses are comparable, preferably bits per byte.

    The unit is nats per token if a row lacks ``bits_per_byte``. In this case, raises UserError if a
    row lacks ``loss``, or if the rows have different tokenizers. Losses in nats per token are
    comparable only if the tokenizer is the same.
    """
    evaluated = [row for row in rows if row.has_loss]
    no_bits = next((row for row in evaluated if math.isnan(row.bits_per_byte)), None)
    if no_bits is None:
        return "bits per byte"
    tokenizers = sorted({row.tokenizer for row in evaluated})
    if len(tokenizers) > 1:
        raise UserError(
            f"{no_bits.location}: bits_per_byte is empty, and losses in nats per token of the "
            f"table's {len(tokenizers)} tokenizers ({', '.join(map(repr, tokenizers))}) are not "
            f"comparable; fill in bits_per_byte in every row."
        )
    no_nats = next((row for row in evaluated if math.isnan(row.loss)), None)
    if no_nats:
        raise UserError(
            f"{no_nats.location}: loss is empty, and bits_per_byte is empty in "
            f"{no_bits.location}; fill in the same column in every row."
        )
    return "nats per token"


def _require_ratios(runs: Sequence[Run], where: str) -> None:
    """Raise UserError if all runs have the same ALMR."""
    ratios = {run.rows[0].almr for run in runs}
    if len(ratios) == 1:
        raise UserError(
            f"{where}: every run has almr={ratios.pop():g}, but the fit needs at least two "
            f"ratios; add runs at a different ratio."
        )


def _require_all_or_none(runs: Sequence[Run], *names: str) -> None:
    """Raise UserError if one of the columns ``names`` is empty for some runs but not for all.

    The fit groups runs by these columns, and a run with an empty field belongs to no group.
    """
    for name in names:
        unstated = [run.last[0] for run in runs if math.isnan(getattr(run.last[0], name))]
        if unstated and len(unstated) < len(runs):
            raise UserError(
                f"{unstated[0].location}: {name} is empty, but other runs state it; fill it in, "
                f"or empty the whole column if all runs have the same value."
            )


def _corpora(runs: Sequence[Run], group: str) -> tuple[str, ...]:
    """Return the sorted names of the group's held-out corpora."""
    return tuple(sorted({name for run in runs for of, name in run.corpora if of == group}))


def _runs_table(runs: Sequence[Run], unit: Unit) -> RunsTable:
    """Return the last evaluation of each run as arrays."""

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
    """Return the learning curve of a run, without evaluations that lack a corpus."""
    found = []
    for _, rows in groupby(run.rows, key=lambda row: row.progress):
        rows = list(rows)
        # Means over different sets of corpora are not comparable.
        if len(rows) == len(run.last):
            losses = (_mean(rows, LOSS_COLUMNS[unit], group) for group in GROUPS)
            found.append((rows[0].tokens, *losses))
    return Curve(*np.array(found, float).T)


def _tokenizers(rows: Sequence[Row]) -> list[str]:
    """Return a remark if the runs have different tokenizers, otherwise an empty list."""
    count = len({row.tokenizer for row in rows if row.has_loss})
    remark = f"The table has {count} tokenizers: losses are compared in bits per byte."
    return [remark] if count > 1 else []


def _no_base(runs: RunsTable, rows: Sequence[Row]) -> list[str]:
    """Return a remark if a base-model loss of the original group is unknown, else an empty list.

    A bound on forgetting is relative to this loss.
    """
    if not np.isnan(runs.base_original).any():
        return []
    column = f"base_{LOSS_COLUMNS[runs.unit]}"
    other = "base_loss" if runs.unit == "bits per byte" else "base_bits_per_byte"
    elsewhere = not all(math.isnan(getattr(row, other)) for row in rows)
    other_unit = f" ({other} is given, but losses are in {runs.unit})" if elsewhere else ""
    return [
        f"{column} of the original group is empty in some rows{other_unit}: a bound on forgetting "
        f"is not available; only weights are."
    ]


def filter_comparable(runs: RunsTable) -> tuple[RunsTable, list[str]]:
    """Return the comparable runs, and one sentence for each reason for which runs were omitted.

    The final loss of a run also depends on the mixture order, the batch size and the schedule. The
    law models none of these, so only the runs with the most frequent value of each are kept.
    """
    notes: list[str] = []
    losses = (runs.additional, runs.original)
    # The forms describe the log of the loss.
    finite = np.all([np.isfinite(loss) & (loss > 0) for loss in losses], axis=0)
    runs = _keep_runs(runs, finite, "have no final loss", notes)
    order = _commonest(runs.mixture_order)
    same_order = runs.mixture_order == order
    runs = _keep_runs(runs, same_order, f"have a mixture order other than {str(order)!r}", notes)
    # The optimal batch size depends on the model size, so it is selected for each size separately.
    batches = np.nan_to_num(runs.batch_tokens)
    usual = _commonest_of_size(batches, runs.parameters)
    reason = "have a batch size other than most runs of their model size"
    runs = _keep_runs(runs, batches == usual, reason, notes)
    # Learning-rate decay lowers the final loss, so runs with and without decay are not comparable.
    decayed = runs.schedule != "constant"
    if decayed.any():
        runs = _keep_runs(runs, decayed, "have a schedule without decay", notes)
        schedule = _commonest(runs.schedule)
        reason = f"have a schedule other than the most frequent one, {str(schedule)!r}"
        return _keep_runs(runs, runs.schedule == schedule, reason, notes), notes
    # With a constant schedule, a short run equals the beginning of a long run. Runs of different
    # token budgets are then not independent, so only one budget is kept.
    tokens = _commonest(runs.tokens)
    if not len(runs) or not np.isfinite(tokens):
        return runs, notes
    reason = f"have a constant schedule and a budget other than {tokens:g} tokens"
    return _keep_runs(runs, runs.tokens == tokens, reason, notes), notes


def fill_unstated(runs: RunsTable) -> RunsTable:
    """Return the runs with replacements for unknown values, so that the forms can be fitted.

    Unknown model sizes and token budgets become 1. An unknown base-model loss becomes the highest
    final loss of all runs with the same model size.
    """
    parameters = _filled(runs.parameters, 1.0)
    # The highest final loss replaces the base-model loss only for the fit. A bound on forgetting
    # requires the true original loss; ``fit_law`` checks that it is known.
    return replace(
        runs,
        parameters=parameters,
        tokens=_filled(runs.tokens, 1.0),
        base_additional=_filled(runs.base_additional, _highest(runs.additional, parameters)),
        base_original=_filled(runs.base_original, _highest(runs.original, parameters)),
    )


def _filled(values: np.ndarray, replacement: np.ndarray | float) -> np.ndarray:
    """Return ``values`` with entries that are not finite replaced by ``replacement``."""
    return np.where(np.isfinite(values), values, replacement)


def _highest(losses: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Return, for each run, the highest loss among all runs of the same model size."""
    return np.array([losses[parameters == size].max() for size in parameters])


def _commonest(values: np.ndarray) -> np.generic | str:
    """Return the most frequent value, or "" for an empty array; on a tie, return the largest."""
    if not len(values):
        return ""
    found, counts = np.unique(values, return_counts=True)
    # ``np.unique`` sorts ascending, so the last maximum is the largest value.
    return found[len(found) - 1 - np.argmax(counts[::-1])]


def _commonest_of_size(values: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Return, for each run, the most frequent value among all runs of the same model size."""
    sizes = np.nan_to_num(parameters)
    usual = {size: _commonest(values[sizes == size]) for size in np.unique(sizes)}
    return np.array([usual[size] for size in sizes])


def _keep_runs(runs: RunsTable, kept: np.ndarray, reason: str, notes: list[str]) -> RunsTable:
    """Return the runs selected by a mask; append a sentence to ``notes`` if runs are omitted."""
    if not kept.all():
        notes.append(f"{int((~kept).sum())} of {len(runs)} runs {reason} and are not fitted.")
    return runs.where(kept)


def repeated_noise(runs: RunsTable) -> dict[str, float]:
    """Return the standard deviation of the log loss of repeated runs, by language group.

    Repeated runs have the same ALMR, learning rate, model size and token budget. The variance is
    pooled over all repeated settings. The result is empty if no run was repeated.
    """
    runs = fill_unstated(runs)
    settings = np.stack([runs.almr, runs.learning_rate, runs.parameters, runs.tokens])
    # Runs with equal columns of ``settings`` differ only in the seed.
    _, setting, counts = np.unique(settings, axis=1, return_inverse=True, return_counts=True)
    degrees_of_freedom = int(np.sum(counts - 1))
    if not degrees_of_freedom:
        return {}
    found = {}
    for group in GROUPS:
        # Deviations from the mean of each repeated setting have counts - 1 degrees of freedom.
        logs = np.log(getattr(runs, group))
        mean = np.bincount(setting.ravel(), logs) / counts
        squares = np.sum((logs - mean[setting.ravel()]) ** 2)
        found[group] = float(np.sqrt(squares / degrees_of_freedom))
    return found
