"""The CSV file of a sweep, or of anybody, as typed rows; what is wrong with it, by line."""

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
"""The language that is added, and what the model knew."""
NEEDED = ("run", "parameters", "tokens", "step", "almr", "learning_rate", "corpus", "group")
WORDS = ("run", "pair", "mixture_order", "schedule", "tokenizer", "corpus", "group")
SCHEDULES = ("cosine", "wsd", "linear", "constant", "inverse_sqrt")
LOSSES = ("loss", "bits_per_byte", "base_loss", "base_bits_per_byte")
NUMBERS = ("parameters", "tokens", "step", "almr", "learning_rate", "batch_tokens", "seed", *LOSSES)


@dataclass(frozen=True)
class Row:
    """A run at an evaluation, on one held-out corpus. NaN or "" where the table does not say."""

    place: str
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
        """Orders the rows of a run: tokens, else steps."""
        return next((value for value in (self.tokens, self.step) if not math.isnan(value)), 0.0)

    @property
    def placed(self) -> bool:
        """Whether the row says when in its run it was measured."""
        return not (math.isnan(self.tokens) and math.isnan(self.step))

    @property
    def measured(self) -> bool:
        """Whether the row has a loss; a run that diverged or stopped has rows without."""
        return not (math.isnan(self.loss) and math.isnan(self.bits_per_byte))


@dataclass(frozen=True)
class TableFile:
    """What a table was read from."""

    path: str
    sha256: str
    rows: tuple[Row, ...] = field(repr=False)


def read_table(path: str) -> TableFile:
    """The rows of one CSV file, local or ``gs://``.

    Raises UserError with the file, line and column of the first thing that is wrong.
    """
    content = _content(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the table as CSV in UTF-8.") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        columns = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        _require_columns(path, columns)
        rows = tuple(_row(f"{path}:{reader.line_num}", values) for values in reader)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error}).") from None
    if not rows:
        raise UserError(f"{path}: a header and no rows; has the sweep finished a run?")
    return TableFile(path, hashlib.sha256(content).hexdigest(), rows)


def _content(path: str) -> bytes:
    check_reachable(path)
    place = epath.Path(path)
    if place.is_dir():
        raise UserError(f"{path}: a folder; name the table in it, such as {place / 'results.csv'}.")
    if not place.exists():
        told = "no file has such a name; a pattern stands without quotes" if "*" in path else ""
        raise UserError(f"{path}: {told or 'no such file; name the CSV files of the runs'}.")
    content = place.read_bytes()
    if not content.strip():
        raise UserError(f"{path}: empty; a table starts with the names of its columns.")
    return content


def _require_columns(path: str, columns: Sequence[str]) -> None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise UserError(f"{path}:1: two columns are named {twice[0]!r}; keep one of them.")
    separator = next((mark for mark in ";\t" if len(columns) == 1 and mark in columns[0]), None)
    if separator:
        raise UserError(f"{path}:1: separated by {separator!r}: save with commas.")
    missing = [name for name in NEEDED if name not in columns]
    if not missing and {"loss", "bits_per_byte"} & set(columns):
        return
    unknown = [name for name in columns if name not in (*NEEDED, *WORDS, *NUMBERS)]
    told = [f"{name!r}{_rename(name, unknown)}" for name in missing]
    if not {"loss", "bits_per_byte"} & set(columns):
        told.append(f"'loss' or 'bits_per_byte'{_rename('loss', unknown)}")
    raise UserError(
        f"{path}:1: no column {', '.join(told)}; docs/law.md has the format. "
        f"Found: {', '.join(columns)}."
    )


def _rename(name: str, unknown: list[str]) -> str:
    return did_you_mean(name, unknown).replace("; did you mean", " (is it").replace("?", "?)")


def _row(place: str, values: dict[str | None, str | list[str] | None]) -> Row:
    """One row; ``values`` holds what is beyond the header under None."""
    if None in values:
        raise UserError(
            f"{place}: more cells than the header has columns; quote cells with commas."
        )
    cells = {str(name): str(cell or "").strip() for name, cell in values.items()}
    read = {name: cells.get(name, "") for name in WORDS}
    read["schedule"] = _schedule(place, read["schedule"])
    numbers = {name: _number(place, name, cells.get(name, "")) for name in NUMBERS}
    row = Row(place=place, **read, **numbers)
    if not row.run:
        raise UserError(f"{place}: run is empty; every row names its run.")
    if row.measured:
        _require_complete(row)
    return row


def _schedule(place: str, cell: str) -> str:
    if cell and cell.lower() not in SCHEDULES:
        near = did_you_mean(cell.lower(), list(SCHEDULES))
        known = ", ".join(SCHEDULES)
        raise UserError(f"{place}: schedule={cell!r} is none of {known}{near or '.'}")
    return cell.lower()


def _require_complete(row: Row) -> None:
    """What a row with a loss must say; a table of others may not know the other numbers."""
    for name in ("almr", "corpus", "group"):
        value = getattr(row, name)
        if value == "" or value != value:
            raise UserError(f"{row.place}: {name} is empty; a row with a loss needs it.")
    if row.group not in GROUPS:
        raise UserError(f"{row.place}: group={row.group!r} must be 'additional' or 'original'.")


def _number(place: str, name: str, cell: str) -> float:
    """A cell as a number in its range; NaN where it is empty."""
    if not cell:
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        raise UserError(
            f"{place}: {name}={cell!r} is no number; leave it empty if unknown."
        ) from None
    if not math.isfinite(value):
        left = "leave the cell empty for a run that diverged" if name in LOSSES else "mend the cell"
        raise UserError(f"{place}: {name}={cell} is not finite; {left}.")
    if name == "almr" and not 0 <= value <= 1:
        raise UserError(f"{place}: almr={cell} is outside [0, 1]; it is a share, not percent.")
    if value <= 0 and name in ("parameters", "learning_rate", *LOSSES):
        raise UserError(f"{place}: {name}={cell} must be above 0.")
    if value < 0 and name in ("tokens", "step"):
        raise UserError(f"{place}: {name}={cell} must not be below 0.")
    return value


# How far two measurements of one base may lie apart: other hardware, another order of sums.
SAME_BASE = 1e-3
SETTINGS = ("pair", "parameters", "almr", "mixture_order", "learning_rate", "schedule", "seed")
COLUMNS = {"bits per byte": "bits_per_byte", "nats per token": "loss"}
"""Where the losses of a unit are."""

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
        """Group and name of what was measured last."""
        return tuple(sorted((row.group, row.corpus) for row in self.last))


def finished_runs(rows: Sequence[Row]) -> tuple[list[Run], list[str]]:
    """The runs with a loss at their last evaluation; of the others, why they are left out.

    Raises UserError where rows of one name are not one run.
    """
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.run, []).append(row)
    kept, left_out = [], []
    for name, of_run in by_name.items():
        _require_one_run(of_run)
        without = _without_end(of_run)
        if without:
            left_out.append(f"Run {name} diverged or did not finish: no loss in {without.place}.")
        else:
            measured = (row for row in of_run if row.measured)
            kept.append(Run(tuple(sorted(measured, key=lambda row: row.progress))))
    return kept, left_out


def with_the_usual_corpora(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs measured on what most of their pair were: means over others cannot be compared."""
    usual: dict[str, tuple] = {}
    for (pair, corpora), _ in Counter(
        (run.last[0].pair, run.corpora) for run in runs
    ).most_common():
        usual.setdefault(pair, corpora)
    kept, left_out = [], []
    for run in runs:
        expected = usual[run.last[0].pair]
        if run.corpora == expected:
            kept.append(run)
            continue
        found, others = (", ".join(name for _, name in some) for some in (run.corpora, expected))
        left_out.append(
            f"Run {run.last[0].run} was measured on {found} where the others were on {others}: "
            f"{run.last[0].place}."
        )
    return kept, left_out


def common_unit(rows: Sequence[Row]) -> Unit:
    """Bits per byte where every row has them, else nats a token, which one tokenizer must share."""
    measured = [row for row in rows if row.measured]
    no_bits = next((row for row in measured if math.isnan(row.bits_per_byte)), None)
    if no_bits is None:
        return "bits per byte"
    tokenizers = sorted({row.tokenizer for row in measured})
    if len(tokenizers) > 1:
        raise UserError(
            f"{no_bits.place}: bits_per_byte is empty and the table has {len(tokenizers)} "
            f"tokenizers ({', '.join(map(repr, tokenizers))}), between which nats cannot be "
            f"compared; give every row its bits_per_byte."
        )
    no_nats = next((row for row in measured if math.isnan(row.loss)), None)
    if no_nats:
        raise UserError(
            f"{no_nats.place}: loss is empty, but {no_bits.place} has no bits_per_byte; fill "
            f"one of the two in every row."
        )
    return "nats per token"


def require_one_base(rows: Sequence[Row], unit: Unit) -> None:
    """Raise UserError where a corpus of one pair and size has two losses before training."""
    column = f"base_{COLUMNS[unit]}"
    first: dict[tuple[str, str, str], tuple[float, str]] = {}
    for row in rows:
        base = getattr(row, column)
        if math.isnan(base):
            continue
        key = (row.pair, f"{row.parameters:.6g}", row.corpus)
        seen, place = first.setdefault(key, (base, row.place))
        if abs(base / seen - 1) > SAME_BASE:
            raise UserError(
                f"{row.place}: {column}={base:g} of {row.corpus!r} is {seen:g} in {place}: two "
                f"bases in one table; fit each by itself, or give each its name in column pair."
            )


def _without_end(rows: Sequence[Row]) -> Row | None:
    """A row that says of its run that it did not come to its end."""
    end = max(row.progress for row in rows)
    for row in rows:
        # A row without loss and place in the run stands for the run as a whole.
        if not row.measured and (row.progress == end or not row.placed):
            return row
    return None


def _require_one_run(rows: Sequence[Row]) -> None:
    """Rows of one name have the same settings, and each corpus once an evaluation."""
    measured = [row for row in rows if row.measured]
    seen: Mapping[tuple[float, str], Row] = {}
    for row in measured:
        for name in SETTINGS:
            here, there = getattr(row, name), getattr(measured[0], name)
            if str(here) != str(there):
                raise UserError(
                    f"{row.place}: run {row.run!r} has {name}={here} but {there} in "
                    f"{measured[0].place}; give each run its own name."
                )
        twin = seen.setdefault((row.progress, row.corpus), row)
        if twin is not row:
            raise UserError(
                f"{row.place}: the same run, corpus and evaluation as in {twin.place}; keep one of "
                f"the two, or give each run its own name."
            )


def require_both_groups(runs: Sequence[Run], where: str) -> None:
    """Raise UserError where nothing can be weighed: no losses, or those of one group."""
    groups = {group for run in runs for group, _ in run.corpora}
    missing = [group for group in GROUPS if group not in groups]
    if missing:
        ask = "" if groups else " Has a run finished?"
        raise UserError(
            f"{where}: no row of group {missing[0]!r} with a loss.{ask} A ratio weighs two groups: "
            f"measure a held-out corpus of each."
        )
