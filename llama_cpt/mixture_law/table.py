"""Reading and validation of CSV tables of runs, and grouping of their rows by run.

Every error message names the file, the line and the column, and states a remedy.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
import hashlib
import math
from typing import Any, Literal

from etils import epath

from llama_cpt.config.fields import did_you_mean
from llama_cpt.runtime.csv_lines import csv_records
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import check_reachable

GROUPS = ("additional", "original")
"""Language groups: the languages to add, and the original languages of the base model."""
REQUIRED = ("run", "parameters", "tokens", "step", "almr", "learning_rate", "corpus", "group")
"""Required columns. A table also needs ``loss``, ``bits_per_byte`` or both."""
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
    """The losses of one run on one held-out corpus at one evaluation.

    Each field is the CSV column of the same name; an empty field is NaN or "".
    """

    location: str
    """File and line of the row, for error messages."""
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
        """Trained tokens at the evaluation; if unknown, the step; if both are unknown, 0."""
        return next((value for value in (self.tokens, self.step) if not math.isnan(value)), 0.0)

    @property
    def has_progress(self) -> bool:
        """Whether the row states the number of tokens or steps."""
        return not (math.isnan(self.tokens) and math.isnan(self.step))

    @property
    def has_loss(self) -> bool:
        """Whether the row has a loss; rows of diverged or unfinished runs can lack both losses."""
        return not (math.isnan(self.loss) and math.isnan(self.bits_per_byte))


@dataclass(frozen=True)
class TableFile:
    """The rows of one CSV file, with the path and SHA-256 digest of the file."""

    path: str
    sha256: str
    rows: tuple[Row, ...] = field(repr=False)


def read_table(path: str) -> TableFile:
    """Return the rows of one CSV file at a local or ``gs://`` path.

    Raises UserError if the file does not exist or is invalid. The message names the line and the
    column of the first error.
    """
    content = _content(path)
    try:
        # Spreadsheets write a byte-order mark, which would become part of the first column's name.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the table as CSV in UTF-8.") from None
    header, *lines = csv_records(path, text)
    columns = [name.strip() for name in header[1]]
    _check_columns(path, columns)
    rows = tuple(_row(f"{path}:{number}", columns, values) for number, values in lines)
    if not rows:
        raise UserError(
            f"{path}: the file has a header but no rows; check that the sweep has finished a run."
        )
    return TableFile(path, hashlib.sha256(content).hexdigest(), rows)


def _content(path: str) -> bytes:
    """Return the bytes of a file; raise UserError if the file is missing, a folder or empty."""
    check_reachable(path)
    file = epath.Path(path)
    if file.is_dir():
        raise UserError(
            f"{path}: this is a folder; name the table in it, such as {file / 'results.csv'}."
        )
    if not file.exists():
        remedy = (
            "write the pattern without quotes, so that the shell expands it"
            if "*" in path
            else "name the CSV files of the runs"
        )
        raise UserError(f"{path}: no such file; {remedy}.")
    content = file.read_bytes()
    if not content.strip():
        raise UserError(f"{path}: the file is empty; the first line must name the columns.")
    return content


def _check_columns(path: str, columns: Sequence[str]) -> None:
    """Raise UserError if a column is missing or duplicated, or if commas are not the separator."""
    duplicates = sorted({name for name in columns if columns.count(name) > 1})
    if duplicates:
        raise UserError(f"{path}:1: two columns are named {duplicates[0]!r}; keep one of them.")
    # Spreadsheets in some locales write semicolons, and copied tables have tabs.
    separator = next((mark for mark in ";\t" if len(columns) == 1 and mark in columns[0]), None)
    if separator:
        raise UserError(
            f"{path}:1: columns are separated by {separator!r}; save the table as CSV with commas."
        )
    missing = [name for name in REQUIRED if name not in columns]
    # Extra columns are allowed; they are reported only as possible misspellings.
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
    """Return " (did you mean 'x'?)" for the closest unknown column, or "" if none is close."""
    suggestion = did_you_mean(name, unknown)
    return suggestion.replace("; did you mean", " (did you mean").replace("?", "?)")


def _row(location: str, columns: Sequence[str], values: Sequence[str]) -> Row:
    """Return the row of one CSV line with the fields ``values``.

    Raises UserError if a field is invalid, or if the line does not have one field per column.
    """
    if len(values) > len(columns):
        raise UserError(
            f"{location}: the row has more fields than the header; quote fields that contain "
            f"commas."
        )
    if len(values) < len(columns):
        raise UserError(
            f"{location}: the row has {len(values)} fields, but the header has {len(columns)}; the "
            "line may be incomplete. Write an empty field between two commas."
        )
    fields = {name: text.strip() for name, text in zip(columns, values, strict=True)}
    texts = {name: fields.get(name, "") for name in TEXT_COLUMNS}
    texts["schedule"] = _schedule(location, texts["schedule"])
    numbers = {name: _number(location, name, fields.get(name, "")) for name in NUMBER_COLUMNS}
    entries: dict[str, Any] = {**texts, **numbers}
    row = Row(location=location, **entries)
    if not row.run:
        raise UserError(f"{location}: run is empty; every row must name its run.")
    if row.has_loss:
        _check_complete(row)
    return row


def _schedule(location: str, text: str) -> str:
    """Return a schedule in lower case; raise UserError if it is not one of ``SCHEDULES``."""
    if text and text.lower() not in SCHEDULES:
        suggestion = did_you_mean(text.lower(), list(SCHEDULES))
        known = ", ".join(SCHEDULES)
        raise UserError(f"{location}: schedule={text!r} must be one of {known}{suggestion or '.'}")
    return text.lower()


def _check_complete(row: Row) -> None:
    """Raise UserError if a row with a loss lacks its ALMR, corpus or group.

    The other columns can be empty, because published tables do not state all of them.
    """
    for name in ("almr", "corpus", "group"):
        value = getattr(row, name)
        if value == "" or value != value:  # NaN is not equal to itself.
            raise UserError(
                f"{row.location}: {name} is empty; every row with a loss must state it."
            )
    if row.group not in GROUPS:
        raise UserError(f"{row.location}: group={row.group!r} must be 'additional' or 'original'.")


def _number(location: str, name: str, text: str) -> float:
    """Return the value of a numeric field, or NaN for an empty field.

    Raises UserError if the text is not a finite number in the valid range of column ``name``.
    """
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise UserError(
            f"{location}: {name}={text!r} is not a number; leave the field empty if it is unknown."
        ) from None
    if not math.isfinite(value):
        remedy = (
            "leave the field empty for a run that diverged"
            if name in LOSSES
            else "enter a finite number, or leave the field empty"
        )
        raise UserError(f"{location}: {name}={text} is not finite; {remedy}.")
    if name == "almr" and not 0 <= value <= 1:
        raise UserError(
            f"{location}: almr={text} must be in [0, 1]; give a share, not a percentage."
        )
    if value <= 0 and name in ("parameters", "learning_rate", *LOSSES):
        raise UserError(f"{location}: {name}={text} must be above 0.")
    if value < 0 and name in ("tokens", "step"):
        raise UserError(f"{location}: {name}={text} must be at least 0.")
    return value


BASE_TOLERANCE = 1e-3
"""Largest relative difference between two losses of the same base model.

Rounding on different hardware causes much smaller differences.
"""
RUN_SETTINGS = ("pair", "parameters", "almr", "mixture_order", "learning_rate", "schedule", "seed")
"""Columns that must have the same value in all rows of a run."""
Unit = Literal["bits per byte", "nats per token"]
"""The unit of a loss."""
LOSS_COLUMNS: dict[Unit, str] = {"bits per byte": "bits_per_byte", "nats per token": "loss"}
"""Name of the column that contains the loss in each unit."""


@dataclass(frozen=True)
class Run:
    """The rows of one run that have a loss, sorted by progress."""

    rows: tuple[Row, ...]

    @cached_property
    def last(self) -> tuple[Row, ...]:
        """The rows of the last evaluation."""
        return tuple(row for row in self.rows if row.progress == self.rows[-1].progress)

    @cached_property
    def corpora(self) -> tuple[tuple[str, str], ...]:
        """Sorted (group, corpus) pairs of the last evaluation."""
        return tuple(sorted((row.group, row.corpus) for row in self.last))


def finished_runs(rows: Sequence[Row]) -> tuple[list[Run], list[str]]:
    """Return the finished runs, and one sentence for each run that diverged or did not finish.

    A run is finished if its last evaluation has a loss on every corpus. Raises UserError if rows of
    one run have different settings (``RUN_SETTINGS``) or repeat an evaluation of a corpus.
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
            evaluated = (row for row in rows_of_run if row.has_loss)
            kept.append(Run(tuple(sorted(evaluated, key=lambda row: row.progress))))
    return kept, left_out


def with_common_corpora(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the runs evaluated on the most common set of corpora of their language pair.

    The loss of a group is the mean over its corpora, so losses of runs with different corpora are
    not comparable. The second result contains one sentence for each omitted run.
    """
    # ``most_common`` is in descending order, so the first set of each pair is its most frequent.
    common: dict[str, tuple[tuple[str, str], ...]] = {}
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
            f"Run {run.last[0].run} ({run.last[0].location}) was evaluated on {found}, but most "
            f"runs of its language pair were evaluated on {others}."
        )
    return kept, left_out


def require_one_base(rows: Sequence[Row], unit: Unit) -> None:
    """Raise UserError if runs of one language pair and model size have different base models.

    The base models differ if the losses of one corpus before the first step differ by more than
    ``BASE_TOLERANCE``.
    """
    column = f"base_{LOSS_COLUMNS[unit]}"
    first: dict[tuple[str, str, str], tuple[float, str]] = {}
    for row in rows:
        base = getattr(row, column)
        if math.isnan(base):
            continue
        # The model size is compared as text, because NaN is not equal to itself.
        key = (row.pair, f"{row.parameters:.6g}", row.corpus)
        seen, location = first.setdefault(key, (base, row.location))
        if abs(base / seen - 1) > BASE_TOLERANCE:
            raise UserError(
                f"{row.location}: {column}={base:g} of {row.corpus!r} is {seen:g} in {location}, "
                f"so the table has two base models; fit them separately, or give each its own "
                f"value of pair."
            )


def _row_without_end(rows: Sequence[Row]) -> Row | None:
    """Return a row that shows that a run did not finish, or None if the run finished.

    Such a row has no loss, and it is from the last evaluation or states neither tokens nor steps.
    """
    end = max(row.progress for row in rows)
    for row in rows:
        # A row with neither a loss nor a number of tokens or steps marks a failed run.
        if not row.has_loss and (row.progress == end or not row.has_progress):
            return row
    return None


def _check_same_settings(rows: Sequence[Row]) -> None:
    """Raise UserError if rows of one run have different settings or repeat an evaluation."""
    # Two runs with one name, or one run in two files, would otherwise be averaged silently.
    evaluated = [row for row in rows if row.has_loss]
    seen: dict[tuple[float, str], Row] = {}
    for row in evaluated:
        for name in RUN_SETTINGS:
            here, there = getattr(row, name), getattr(evaluated[0], name)
            # Values are compared as text, because NaN is not equal to itself.
            if str(here) != str(there):
                raise UserError(
                    f"{row.location}: run {row.run!r} has {name}={here} but {name}={there} in "
                    f"{evaluated[0].location}; give each run its own name."
                )
        duplicate = seen.setdefault((row.progress, row.corpus), row)
        if duplicate is not row:
            raise UserError(
                f"{row.location}: the row has the same run, corpus and evaluation as "
                f"{duplicate.location}; keep one of the two rows, or give each run its own name."
            )
