"""Text of a comparison: findings, cells and method, for Markdown, HTML and the terminal."""

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
    """Return the findings of each model with the names of their rows."""
    return [
        (model, [(mark, rows) for mark in MARKS if (rows := comparison.rows_with(model, mark))])
        for model in comparison.models[1:]
    ]


def row_name(row: Row) -> str:
    """Return the name of a row with the direction or the chance level of its score."""
    if row.less_is_better and not row.is_bits:
        return f"{row.name} (less is better)"
    return row.name if row.chance is None else f"{row.name} (chance {row.chance:.3g})"


def cell_lines(row: Row, cell: Cell | None) -> list[str]:
    """Return the lines of a cell: score, difference with interval, finding."""
    if cell is None:
        return ["not measured"]
    score = f"{cell.score:.4f}" if row.is_bits else f"{cell.score:.1f}"
    if cell.difference is None:
        return [score]
    low, high = cell.difference.interval
    value = signed(row, cell.difference.value)
    interval = f"({signed(row, low)} to {signed(row, high)})"
    if math.isinf(low):
        interval = "(no interval for one example)"
    return [score, f"{value} {interval}", cell.difference.finding]


def signed(row: Row, value: float) -> str:
    """Format a difference in percent of bits per byte, or in points."""
    text = f"{100 * value:+.1f} %" if row.is_bits else f"{value:+.1f}"
    return text.replace("-", MINUS)


def task_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return a table that describes the rows of the comparison, the header first."""
    rows = [("task", "metric", "worked examples", "examples", "resampled", "margin")]
    for row in comparison.rows:
        left_out = f" ({row.left_out:,} not common to all models)" if row.left_out else ""
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
    """Return the method of the comparison in sentences."""
    count, first = comparison.differences, comparison.models[0]
    level = f"{100 * corrected_level(count):.6g} %"
    return [
        f"Differences are to {first}, on the same examples. Bits per byte: less is better, the "
        "difference is relative, documents are weighted by their length. All other metrics: more "
        "is better unless noted, the difference is in points.",
        f"In parentheses: paired bootstrap intervals. There are {count} differences here, so each "
        f"interval is at {level} (Bonferroni): all of them are correct at once in {LEVEL:.0%} of "
        "cases.",
        "gained: the whole interval is better than zero. forgotten: the whole interval is worse "
        "than zero. kept: the whole interval is within the margin. not told apart: the examples "
        "are too few to show a difference or to rule one out.",
    ]


def terminal_lines(comparison: Comparison) -> str:
    """Format one line per model and task for a terminal."""
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
