"""A comparison in words and cells, for Markdown, HTML and a terminal alike."""

from collections.abc import Sequence
import math

from llama_cpt.evaluation.comparison.compare import (
    BITS_MARGIN,
    POINTS_MARGIN,
    Cell,
    Comparison,
    Row,
)
from llama_cpt.evaluation.paired import LEVEL, Finding, corrected_level

MARKS: tuple[Finding, ...] = ("gained", "forgotten", "kept", "not told apart")
MINUS = "\N{MINUS SIGN}"


def findings(comparison: Comparison) -> list[tuple[str, list[tuple[Finding, list[str]]]]]:
    """By model, its marks and the rows that bear them."""
    return [
        (model, [(mark, rows) for mark in MARKS if (rows := comparison.rows_with(model, mark))])
        for model in comparison.models[1:]
    ]


def row_name(row: Row) -> str:
    """A row's name, and what one has to know of its score."""
    if row.less_is_better and not row.is_bits:
        return f"{row.name} (less is better)"
    return row.name if row.chance is None else f"{row.name} (chance {row.chance:.3g})"


def cell_lines(row: Row, cell: Cell | None) -> list[str]:
    """What stands in a cell: the score, the difference with its interval, the mark."""
    if cell is None:
        return ["not measured"]
    score = f"{cell.score:.4f}" if row.is_bits else f"{cell.score:.1f}"
    if cell.difference is None:
        return [score]
    low, high = cell.difference.interval
    value = signed(row, cell.difference.value)
    span = f"({signed(row, low)} to {signed(row, high)})"
    if math.isinf(low):
        span = "(one example has no interval)"
    return [score, f"{value} {span}", cell.difference.finding]


def signed(row: Row, value: float) -> str:
    """A difference: percent of bits per byte, or points."""
    text = f"{100 * value:+.1f} %" if row.is_bits else f"{value:+.1f}"
    return text.replace("-", MINUS)


def task_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """What the rows of the table are, a header first."""
    rows = [("task", "measured in", "worked examples", "examples", "resampled", "not felt below")]
    for row in comparison.rows:
        left_out = f" ({row.left_out:,} more that not all have)" if row.left_out else ""
        kind = "documents" if row.is_bits else "examples"
        rows.append(
            (
                row.name,
                row.metric.replace("_", " ") + ("" if row.is_bits else ", 0 to 100"),
                "" if row.shots is None else str(row.shots),
                f"{row.examples:,}{left_out}",
                f"{row.groups} groups" if row.groups else kind,
                f"{BITS_MARGIN:.0%}" if row.is_bits else f"{POINTS_MARGIN:g} points",
            )
        )
    return rows


def how_to_read(comparison: Comparison) -> list[str]:
    """The method, in sentences."""
    count, first = comparison.differences, comparison.models[0]
    level = f"{100 * corrected_level(count):.6g} %"
    return [
        f"Differences are to {first}, on the same examples. Bits per byte: less is better, the "
        "difference is relative, documents count by their length. All else: more is better where "
        "nothing else is said, the difference is in points.",
        f"In brackets: paired bootstrap intervals. There are {count} differences here, so each "
        f"interval is at {level} (Bonferroni): all of them hold at once in {LEVEL:.0%} of cases.",
        "gained: the whole interval is better than zero. forgotten: the whole interval is worse. "
        "kept: the whole interval lies within what is not felt, on whichever side of zero. not "
        "told apart: there may be a difference that is felt, or none; more examples would tell.",
    ]


def terminal_lines(comparison: Comparison) -> str:
    """A line a model and task, for a terminal."""
    rows: list[Sequence[str]] = [("task", "model", "score", "difference", "")]
    for row in comparison.rows:
        for model, cell in zip(comparison.models, row.cells, strict=True):
            lines = cell_lines(row, cell)
            rows.append((row_name(row), model, *lines, *[""] * (3 - len(lines))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
