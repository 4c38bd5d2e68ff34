"""Formatting of text cells as a table for a terminal or in Markdown."""

from collections.abc import Sequence
import re


def aligned_table(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Format ``rows`` as left-aligned columns for a terminal; the first row is the header.

    A line break in a cell becomes a space. A column is omitted if all cells below its header are
    empty.
    """
    rows = [[" ".join(cell.splitlines()) for cell in row] for row in rows]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:] or column)]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        (indent + "  ".join(map(str.ljust, row, widths))).rstrip()
        for row in zip(*columns, strict=True)
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Format ``rows`` as a table in GitHub's Markdown; the first row is the header.

    Vertical bars in cells are escaped because they would end the cell. A line break becomes a
    space because it would end the row.
    """
    cells = [[markdown_cell(cell) for cell in row] for row in rows]
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def markdown_cell(text: str) -> str:
    """Return ``text`` on one line and with a backslash before each unescaped vertical bar."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.splitlines()))
