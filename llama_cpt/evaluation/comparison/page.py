"""Reports of a comparison: ``report.md`` with figures, ``report.html``, and text for a terminal."""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from etils import epath
from matplotlib.figure import Figure

from llama_cpt.evaluation.comparison.compare import (
    BITS_MARGIN,
    POINTS,
    POINTS_MARGIN,
    Cell,
    Comparison,
    Row,
    compare,
)
from llama_cpt.evaluation.comparison.figures import MINUS, draw_differences, draw_languages
from llama_cpt.evaluation.paired import LEVEL, Finding, corrected_level
from llama_cpt.mixture_law.figure_style import png, style
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.tables import Markdown, aligned_table, markdown_table
from llama_cpt.runtime.untrusted_text import escape_markdown

MARKS: tuple[Finding, ...] = (
    "gained",
    "forgotten",
    "kept",
    "no significant difference",
    "inconclusive",
)
PICTURES = {
    "differences.png": "Differences with intervals. A thick line is the 95 % interval of a single "
    "difference. A thin line is the interval after correction for the number of differences. The "
    "gray band is the margin. Improvements are to the right.",
    "languages.png": "Bits per byte of whole documents. Values of different languages are not "
    "comparable.",
}
CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: .4rem .7rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
td b { font-size: 16px; }
td small { white-space: nowrap; color: #444; }
.gained { background: #dff2ea; } .forgotten { background: #fbe3d6; } .kept { background: #f2f2f2; }
img { max-width: 100%; }
figcaption { color: #444; font-size: 14px; }
"""


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
    change = signed(row, cell.difference.value)
    if cell.difference.finding != "inconclusive":
        change += f" ({signed(row, low)} to {signed(row, high)})"
    return [score, change, cell.difference.finding]


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
                row.metric.replace("_", " ") + (", 0 to 100" if row.unit == POINTS else ""),
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
        "examples are too few to show a difference or to rule out a difference above the margin. "
        "One example is inconclusive: it has no interval.",
    ]


def terminal_table(comparison: Comparison, summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for a terminal, with one line per task and model and one unit per column.

    ``summaries`` contains the summary of each model, as ``write_summary`` returns it. The score of
    EQ-Bench as its authors define it has a separate line.
    """
    units = list(dict.fromkeys(row.unit for row in comparison.rows))
    changes = [_change_unit(unit) for unit in units]
    pairs = zip(units, changes, strict=True)
    header = ["task", "model", "examples", *(name for pair in pairs for name in pair)]
    table = [[*header, "finding", "tokens per character"]]
    for row in comparison.rows:
        count = f"{row.examples:,}"
        if row.left_out:
            count += f" of {row.examples + row.left_out:,}"
        for summary, cell in zip(summaries, row.cells, strict=True):
            if cell is None:
                continue
            line = dict.fromkeys(table[0], "")
            line |= {"task": row_name(row), "model": str(summary["model"]), "examples": count}
            lines = cell_lines(row, cell)
            line |= zip((row.unit, _change_unit(row.unit), "finding"), lines, strict=False)
            task, _, corpus = row.name.partition(": ")
            values = summary["tasks"][task]
            if density := values.get("tokens_per_character", {}).get(corpus):
                line["tokens per character"] = f"{density:.3f}"
            table.append(list(line.values()))
            if (published := values.get("published_score")) is not None:
                parsed = round(values["parseable"] * values["examples"])
                line |= dict.fromkeys((_change_unit(row.unit), "finding"), "")
                line |= {"task": f"{row.name} published", "examples": f"{parsed:,}"}
                line[row.unit] = f"{published:.1f}"
                table.append(list(line.values()))
    return "\n".join([aligned_table(table, indent=""), *comparison.remarks])


def _change_unit(unit: str) -> str:
    return {"bits per byte": "change, %", POINTS: "change, points"}.get(unit, f"change in {unit}")


def write_comparison(folders: Sequence[str], output: str) -> Comparison:
    """Compare the models with scores in ``folders``, and write the reports to ``output``.

    Returns the comparison. Every model is compared with the first model. Raises UserError in the
    same cases as ``compare``.
    """
    comparison, folder = compare(folders), epath.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = pictures_of(comparison)
    for name in PICTURES:
        if name in pictures:
            write_atomic(folder / name, pictures[name])
        else:
            (folder / name).unlink(missing_ok=True)
    text = f"# {escape_markdown(_title(comparison))}\n\n{markdown_of(comparison, '')}\n"
    write_atomic(folder / "report.md", text.encode())
    write_atomic(folder / "report.html", _page(comparison, pictures).encode())
    return comparison


def pictures_of(comparison: Comparison) -> dict[str, bytes]:
    """Return the figures that have data, as a dict from file name to PNG bytes."""
    with style():
        return {name: png(draw(comparison)) for name, draw in _figures(comparison).items()}


def markdown_of(comparison: Comparison, folder: str) -> str:
    """Return the report in Markdown; ``folder`` is the prefix of the file names of figures."""
    rows = [
        (row_name(row), *(_markdown_cell(cell_lines(row, cell)) for cell in row.cells))
        for row in comparison.rows
    ]
    parts = [
        "\n".join(
            f"- **{escape_markdown(model)}** {escape_markdown(text)}"
            for model, text in _findings(comparison)
        ),
        "\n".join(f"- **Caution:** {escape_markdown(remark)}" for remark in comparison.remarks),
        markdown_table([("task", *comparison.models), *rows]),
        *(
            f"![{PICTURES[name]}]({folder}{name})\n\n{PICTURES[name]}"
            for name in _figures(comparison)
        ),
        "\n".join(f"- {escape_markdown(sentence)}" for sentence in how_to_read(comparison)),
        markdown_table(task_rows(comparison)),
    ]
    return "\n\n".join(part for part in parts if part)


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text cells as HTML; the first row is the header."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _figures(comparison: Comparison) -> dict[str, Callable[[Comparison], Figure]]:
    figures = {}
    if comparison.differences:
        figures["differences.png"] = draw_differences
    if any(row.is_bits for row in comparison.rows):
        figures["languages.png"] = draw_languages
    return figures


def _findings(comparison: Comparison) -> list[tuple[str, str]]:
    return [
        (model, "; ".join(f"{mark}: {', '.join(rows)}" for mark, rows in marks) or "not compared")
        for model, marks in findings(comparison)
    ]


def _page(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    items = "".join(
        f"<li><b>{escape(model)}</b> {escape(text)}</li>" for model, text in _findings(comparison)
    )
    items += "".join(f"<li><b>Caution:</b> {escape(text)}</li>" for text in comparison.remarks)
    head = "".join(f"<th>{escape(name)}</th>" for name in ("task", *comparison.models))
    body = "".join(
        f"<tr><th>{escape(row_name(row))}</th>"
        + "".join(_html_cell(cell_lines(row, cell)) for cell in row.cells)
        + "</tr>"
        for row in comparison.rows
    )
    figures = "".join(html_figure(picture, PICTURES[name]) for name, picture in pictures.items())
    method = "".join(f"<p>{escape(sentence)}</p>" for sentence in how_to_read(comparison))
    return html_page(
        _title(comparison),
        f"<ul>{items}</ul>\n"
        f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>\n{figures}\n'
        f"<h2>Method</h2>\n{method}\n{html_table(task_rows(comparison))}",
    )


def html_page(title: str, body: str) -> str:
    """Return a self-contained page with a heading; ``body`` is HTML."""
    title = escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{CSS}</style></head><body>\n<h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def html_figure(picture: bytes, caption: str) -> str:
    """Return a PNG file as a figure that is contained in the page."""
    content, text = base64.b64encode(picture).decode(), escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{content}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _title(comparison: Comparison) -> str:
    return f"Comparison of {', '.join(comparison.models)}"


def _markdown_cell(lines: Sequence[str]) -> Markdown:
    return Markdown("<br>".join([*lines[:2], *(f"**{mark}**" for mark in lines[2:])]))


def _html_cell(lines: Sequence[str]) -> str:
    if len(lines) < 3:
        return f"<td>{escape(lines[0])}</td>"
    score, difference, mark = map(escape, lines)
    # A finding of several words has no CSS class.
    kind = mark if " " not in mark else "open"
    return f'<td class="{kind}">{score}<br><b>{mark}</b><br><small>{difference}</small></td>'
