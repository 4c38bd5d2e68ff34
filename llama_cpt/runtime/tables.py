"""Tables of text cells, for a terminal and in Markdown."""

from collections.abc import Sequence
import re


def aligned_table(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Return ``rows``, the first of which is the header, as left-aligned columns for a terminal.

    Line breaks in cells become spaces; columns that are empty below the header are omitted.
    """
    rows = [[" ".join(cell.splitlines()) for cell in row] for row in rows]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:] or column)]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        (indent + "  ".join(map(str.ljust, row, widths))).rstrip()
        for row in zip(*columns, strict=True)
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return ``rows``, the first of which is the header, as a table in GitHub's Markdown.

    Cells are escaped: a vertical bar would end a cell, and a line break would end the row.
    """
    cells = [[markdown_cell(cell) for cell in row] for row in rows]
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def markdown_cell(text: str) -> str:
    """Return ``text`` on one line, with vertical bars that are not yet escaped escaped."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.splitlines()))
