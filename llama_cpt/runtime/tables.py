"""Formatting of text cells as a table for a terminal or in Markdown."""

from collections.abc import Sequence

from llama_cpt.runtime.untrusted_text import escape_markdown, printable


class Markdown(str):
    """Text that is Markdown already, so that ``markdown_table`` does not escape it."""

    __slots__ = ()


def aligned_table(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Format ``rows`` as left-aligned columns for a terminal; the first row is the header.

    A line break in a cell becomes a space, and characters that control a terminal are removed. A
    column is omitted if all cells below its header are empty.
    """
    rows = [[printable(" ".join(cell.splitlines())) for cell in row] for row in rows]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:] or column)]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        (indent + "  ".join(map(str.ljust, row, widths))).rstrip()
        for row in zip(*columns, strict=True)
    )


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Format ``rows`` as a table in GitHub's Markdown; the first row is the header.

    The text of a cell is escaped unless the cell is ``Markdown``.
    """
    cells = [
        [cell if isinstance(cell, Markdown) else escape_markdown(cell) for cell in row]
        for row in rows
    ]
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
