"""Text of a comparison for Markdown, HTML and the terminal: findings, cells and method."""

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
from llama_cpt.runtime.tables import aligned_table

MARKS: tuple[Finding, ...] = ("gained", "forgotten", "kept", "no significant difference")
MINUS = "\N{MINUS SIGN}"


def findings(comparison: Comparison) -> list[tuple[str, list[tuple[Finding, list[str]]]]]:
    """Return, for each model after the first, the names of the rows with each finding."""
    return [
        (model, [(mark, rows) for mark in MARKS if (rows := comparison.rows_with(model, mark))])
        for model in comparison.models[1:]
    ]


def row_name(row: Row) -> str:
    """Return the name of a row with a note in parentheses.

    The note is "less is better" or the score of random guesses. A row without either has no note.
    """
    if row.less_is_better and not row.is_bits:
        return f"{row.name} (less is better)"
    return row.name if row.chance is None else f"{row.name} (chance {row.chance:.3g})"


def cell_lines(row: Row, cell: Cell | None) -> list[str]:
    """Return the lines of a cell: the score, the difference with its interval, and the finding."""
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
    """Return a difference as text with its sign, in percent for bits per byte, else in points."""
    text = f"{100 * value:+.1f} %" if row.is_bits else f"{value:+.1f}"
    return text.replace("-", MINUS)


def task_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return a table of text cells, the header first, that describes each row of the comparison."""
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
    """Return paragraphs that explain the method of the comparison."""
    count, first = comparison.differences, comparison.models[0]
    level = f"{100 * corrected_level(count):.6g} %"
    return [
        f"Each difference is a change from {first}, on the same examples. For bits per byte, less "
        "is better, the difference is relative, and documents are weighted by their length. For "
        "all other metrics, more is better unless noted, and the difference is in points.",
        "The intervals in parentheses are paired bootstrap intervals. There are "
        f"{count} differences, so each interval has the level {level} (Bonferroni correction): "
        f"all intervals contain the true values at the same time in {LEVEL:.0%} of cases.",
        "The finding is kept if the whole interval is within the margin. Otherwise, it is gained "
        "if the whole interval is better than zero, forgotten if the whole interval is worse than "
        "zero, and no significant difference if the interval contains zero. In the last case, the "
        "examples are too few to show a difference or to rule out a difference above the margin.",
    ]


def terminal_lines(comparison: Comparison) -> str:
    """Return a table for a terminal, with one line per task and model."""
    rows: list[Sequence[str]] = [("task", "model", "score", "difference", "")]
    for row in comparison.rows:
        for model, cell in zip(comparison.models, row.cells, strict=True):
            lines = cell_lines(row, cell)
            rows.append((row_name(row), model, *lines, *[""] * (3 - len(lines))))
    return aligned_table(rows, indent="")
