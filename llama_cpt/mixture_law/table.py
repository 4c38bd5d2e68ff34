"""Rows of CSV tables of runs, checked and grouped into runs.

Every error names the file, the line, the column and the remedy.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import csv
from dataclasses import dataclass, field
from functools import cached_property
import hashlib
import io
import math
from typing import Literal

from etils import epath

from llama_cpt.config.fields import did_you_mean
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import check_reachable

GROUPS = ("additional", "original")
"""The language that is added, and the languages that the base model was trained on."""
REQUIRED = ("run", "parameters", "tokens", "step", "almr", "learning_rate", "corpus", "group")
"""Columns that every table has; in addition, at least one of ``loss`` and ``bits_per_byte``."""
TEXT_COLUMNS = ("run", "pair", "mixture_order", "schedule", "tokenizer", "corpus", "group")
SCHEDULES = ("cosine", "wsd", "linear", "constant", "inverse_sqrt")
LOSSES = ("loss", "bits_per_byte", "base_loss", "base_bits_per_byte")
NUMBER_COLUMNS = (
    "parameters",
    "tokens",
    "step",
    "almr",
    "learning_rate",
    "batch_tokens",
    "seed",
    *LOSSES,
)


@dataclass(frozen=True)
class Row:
    """One held-out corpus at one evaluation of one run; NaN or "" for empty cells."""

    location: str
    """File and line, for messages."""
    run: str
    pair: str
    parameters: float
    tokens: float
    step: float
    almr: float
    mixture_order: str
    learning_rate: float
    schedule: str
    batch_tokens: float
    seed: float
    tokenizer: str
    corpus: str
    group: str
    loss: float
    bits_per_byte: float
    base_loss: float
    base_bits_per_byte: float

    @property
    def progress(self) -> float:
        """The position of the evaluation in its run: tokens if known, otherwise steps."""
        return next((value for value in (self.tokens, self.step) if not math.isnan(value)), 0.0)

    @property
    def has_progress(self) -> bool:
        """Whether the row states tokens or steps."""
        return not (math.isnan(self.tokens) and math.isnan(self.step))

    @property
    def measured(self) -> bool:
        """Whether the row has a loss; a run that diverged or stopped has rows without one."""
        return not (math.isnan(self.loss) and math.isnan(self.bits_per_byte))


@dataclass(frozen=True)
class TableFile:
    """The rows of one file, with the file's path and hash."""

    path: str
    sha256: str
    rows: tuple[Row, ...] = field(repr=False)


def read_table(path: str) -> TableFile:
    """Return the rows of one CSV file, local or ``gs://``.

    Raises UserError that names the file, line and column of the first invalid entry.
    """
    content = _content(path)
    try:
        # Spreadsheets write a byte-order mark, which would become part of the first column's name.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the table as CSV in UTF-8.") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        columns = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        _check_columns(path, columns)
        rows = tuple(_row(f"{path}:{reader.line_num}", values) for values in reader)
    except csv.Error as error:
        raise UserError(
            f"{path}:{reader.line_num}: not valid CSV ({error}); fix the line."
        ) from None
    if not rows:
        raise UserError(f"{path}: a header but no rows; check that the sweep has finished a run.")
    return TableFile(path, hashlib.sha256(content).hexdigest(), rows)


def _content(path: str) -> bytes:
    check_reachable(path)
    file = epath.Path(path)
    if file.is_dir():
        raise UserError(f"{path}: a folder; name the table in it, such as {file / 'results.csv'}.")
    if not file.exists():
        remedy = (
            "write a pattern without quotes" if "*" in path else "name the CSV files of the runs"
        )
        raise UserError(f"{path}: no such file; {remedy}.")
    content = file.read_bytes()
    if not content.strip():
        raise UserError(f"{path}: the file is empty; the first line must name the columns.")
    return content


def _check_columns(path: str, columns: Sequence[str]) -> None:
    duplicates = sorted({name for name in columns if columns.count(name) > 1})
    if duplicates:
        raise UserError(f"{path}:1: two columns are named {duplicates[0]!r}; keep one of them.")
    separator = next((mark for mark in ";\t" if len(columns) == 1 and mark in columns[0]), None)
    if separator:
        raise UserError(
            f"{path}:1: columns are separated by {separator!r}; save the table with commas."
        )
    missing = [name for name in REQUIRED if name not in columns]
    if not missing and {"loss", "bits_per_byte"} & set(columns):
        return
    unknown = [name for name in columns if name not in (*REQUIRED, *TEXT_COLUMNS, *NUMBER_COLUMNS)]
    absent = [f"{name!r}{_suggestion(name, unknown)}" for name in missing]
    if not {"loss", "bits_per_byte"} & set(columns):
        absent.append(f"'loss' or 'bits_per_byte'{_suggestion('loss', unknown)}")
    raise UserError(
        f"{path}:1: missing column {', '.join(absent)}; docs/guide/law.md describes the format. "
        f"Found: {', '.join(columns)}."
    )


def _suggestion(name: str, unknown: list[str]) -> str:
    suggestion = did_you_mean(name, unknown)
    return suggestion.replace("; did you mean", " (did you mean").replace("?", "?)")


def _row(location: str, values: dict[str | None, str | list[str] | None]) -> Row:
    """Return one row; ``csv.DictReader`` puts cells beyond the header under the key None."""
    if None in values:
        raise UserError(
            f"{location}: the row has more cells than the header; quote cells that contain commas."
        )
    cells = {str(name): str(cell or "").strip() for name, cell in values.items()}
    read = {name: cells.get(name, "") for name in TEXT_COLUMNS}
    read["schedule"] = _schedule(location, read["schedule"])
    numbers = {name: _number(location, name, cells.get(name, "")) for name in NUMBER_COLUMNS}
    row = Row(location=location, **read, **numbers)
    if not row.run:
        raise UserError(f"{location}: run is empty; every row must name its run.")
    if row.measured:
        _check_complete(row)
    return row


def _schedule(location: str, cell: str) -> str:
    if cell and cell.lower() not in SCHEDULES:
        suggestion = did_you_mean(cell.lower(), list(SCHEDULES))
        known = ", ".join(SCHEDULES)
        raise UserError(f"{location}: schedule={cell!r} must be one of {known}{suggestion or '.'}")
    return cell.lower()


def _check_complete(row: Row) -> None:
    """Raise UserError if a row with a loss lacks a cell that the fit needs.

    Other numbers may be unknown in tables from other sources.
    """
    for name in ("almr", "corpus", "group"):
        value = getattr(row, name)
        if value == "" or value != value:  # NaN is not equal to itself.
            raise UserError(f"{row.location}: {name} is empty; fill it in, as the row has a loss.")
    if row.group not in GROUPS:
        raise UserError(f"{row.location}: group={row.group!r} must be 'additional' or 'original'.")


def _number(location: str, name: str, cell: str) -> float:
    """Return a cell as a number in its valid range; NaN if it is empty."""
    if not cell:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        raise UserError(
            f"{location}: {name}={cell!r} is not a number; leave the cell empty if unknown."
        ) from None
    if not math.isfinite(value):
        remedy = "leave the cell empty for a run that diverged" if name in LOSSES else "correct it"
        raise UserError(f"{location}: {name}={cell} is not finite; {remedy}.")
    if name == "almr" and not 0 <= value <= 1:
        raise UserError(
            f"{location}: almr={cell} must be in [0, 1]; give a share, not a percentage."
        )
    if value <= 0 and name in ("parameters", "learning_rate", *LOSSES):
        raise UserError(f"{location}: {name}={cell} must be above 0.")
    if value < 0 and name in ("tokens", "step"):
        raise UserError(f"{location}: {name}={cell} must be at least 0.")
    return value


# Two evaluations of one base model differ by rounding on different hardware, but by far less.
BASE_TOLERANCE = 1e-3
RUN_SETTINGS = ("pair", "parameters", "almr", "mixture_order", "learning_rate", "schedule", "seed")
LOSS_COLUMNS = {"bits per byte": "bits_per_byte", "nats per token": "loss"}
"""The column of each unit of the loss."""

Unit = Literal["bits per byte", "nats per token"]


@dataclass(frozen=True)
class Run:
    """All rows of one run that have a loss, by progress."""

    rows: tuple[Row, ...]

    @cached_property
    def last(self) -> tuple[Row, ...]:
        """The rows of the last evaluation."""
        return tuple(row for row in self.rows if row.progress == self.rows[-1].progress)

    @cached_property
    def corpora(self) -> tuple[tuple[str, str], ...]:
        """Group and name of each corpus in the last evaluation."""
        return tuple(sorted((row.group, row.corpus) for row in self.last))


def finished_runs(rows: Sequence[Row]) -> tuple[list[Run], list[str]]:
    """Return the runs with a loss at their last evaluation, and a reason for each other run.

    Raises UserError if rows with one run name belong to different runs.
    """
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.run, []).append(row)
    kept, left_out = [], []
    for name, rows_of_run in by_name.items():
        _check_same_settings(rows_of_run)
        unfinished = _row_without_end(rows_of_run)
        if unfinished:
            left_out.append(
                f"Run {name} diverged or did not finish: no loss in {unfinished.location}."
            )
        else:
            measured = (row for row in rows_of_run if row.measured)
            kept.append(Run(tuple(sorted(measured, key=lambda row: row.progress))))
    return kept, left_out


def with_common_corpora(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the runs that evaluated the same corpora as most runs of their pair.

    A group's loss is a mean over its corpora, so means over different corpora are not comparable.
    """
    common: dict[str, tuple] = {}
    for (pair, corpora), _ in Counter(
        (run.last[0].pair, run.corpora) for run in runs
    ).most_common():
        common.setdefault(pair, corpora)
    kept, left_out = [], []
    for run in runs:
        expected = common[run.last[0].pair]
        if run.corpora == expected:
            kept.append(run)
            continue
        found, others = (", ".join(name for _, name in some) for some in (run.corpora, expected))
        left_out.append(
            f"Run {run.last[0].run} was evaluated on {found}, but most runs of its pair on "
            f"{others}: {run.last[0].location}."
        )
    return kept, left_out


def common_unit(rows: Sequence[Row]) -> Unit:
    """Return bits per byte if every row has them, otherwise nats per token.

    Raises UserError if the rows would have to be compared in nats of different tokenizers.
    """
    measured = [row for row in rows if row.measured]
    no_bits = next((row for row in measured if math.isnan(row.bits_per_byte)), None)
    if no_bits is None:
        return "bits per byte"
    tokenizers = sorted({row.tokenizer for row in measured})
    if len(tokenizers) > 1:
        raise UserError(
            f"{no_bits.location}: bits_per_byte is empty and the table has {len(tokenizers)} "
            f"tokenizers ({', '.join(map(repr, tokenizers))}), whose losses in nats are not "
            f"comparable; fill in bits_per_byte in every row."
        )
    no_nats = next((row for row in measured if math.isnan(row.loss)), None)
    if no_nats:
        raise UserError(
            f"{no_nats.location}: loss is empty, but {no_bits.location} has no bits_per_byte; fill "
            f"in one of the two columns in every row."
        )
    return "nats per token"


def require_one_base(rows: Sequence[Row], unit: Unit) -> None:
    """Raise UserError if a corpus has two losses before training at one pair and size."""
    # All runs of a pair and size start from one base model, so its loss must be the same.
    column = f"base_{LOSS_COLUMNS[unit]}"
    first: dict[tuple[str, str, str], tuple[float, str]] = {}
    for row in rows:
        base = getattr(row, column)
        if math.isnan(base):
            continue
        # The size as text, in which NaN equals NaN.
        key = (row.pair, f"{row.parameters:.6g}", row.corpus)
        seen, location = first.setdefault(key, (base, row.location))
        if abs(base / seen - 1) > BASE_TOLERANCE:
            raise UserError(
                f"{row.location}: {column}={base:g} of {row.corpus!r} is {seen:g} in {location}: "
                f"two bases in one table; fit them separately, or name them in the column pair."
            )


def _row_without_end(rows: Sequence[Row]) -> Row | None:
    """Return a row which shows that its run did not finish, or None."""
    end = max(row.progress for row in rows)
    for row in rows:
        # A row with neither a loss nor a position stands for the run as a whole.
        if not row.measured and (row.progress == end or not row.has_progress):
            return row
    return None


def _check_same_settings(rows: Sequence[Row]) -> None:
    """Raise UserError if the settings of a run differ between rows, or a measurement repeats."""
    measured = [row for row in rows if row.measured]
    seen: Mapping[tuple[float, str], Row] = {}
    for row in measured:
        for name in RUN_SETTINGS:
            here, there = getattr(row, name), getattr(measured[0], name)
            # Compared as text, in which NaN equals NaN.
            if str(here) != str(there):
                raise UserError(
                    f"{row.location}: run {row.run!r} has {name}={here} but {there} in "
                    f"{measured[0].location}; give each run its own name."
                )
        duplicate = seen.setdefault((row.progress, row.corpus), row)
        if duplicate is not row:
            raise UserError(
                f"{row.location}: the same run, corpus and evaluation as in "
                f"{duplicate.location}; keep one of the two, or give each run its own name."
            )


def require_both_groups(runs: Sequence[Run], where: str) -> None:
    """Raise UserError if one of the groups has no loss."""
    groups = {group for run in runs for group, _ in run.corpora}
    missing = [group for group in GROUPS if group not in groups]
    if missing:
        unfinished = "" if groups else " (check that a run has finished)"
        raise UserError(
            f"{where}: no row of group {missing[0]!r} has a loss{unfinished}; evaluate a held-out "
            f"corpus of each group."
        )
