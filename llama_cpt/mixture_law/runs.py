"""Rows of a table put together as runs; which of them count, and what forbids to compare them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
import math
from typing import Literal

from llama_cpt.mixture_law.runs_table import GROUPS
from llama_cpt.mixture_law.table import Row
from llama_cpt.runtime.errors import UserError

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
