"""``report.md`` with its pictures, and ``report.html`` that holds them itself."""

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape

from etils import epath
from matplotlib.figure import Figure

from llama_cpt.evaluation.comparison.compare import Comparison, compare
from llama_cpt.evaluation.comparison.figures import draw_differences, draw_languages
from llama_cpt.evaluation.comparison.text import (
    cell_lines,
    findings,
    how_to_read,
    row_name,
    task_rows,
)
from llama_cpt.mixture_law.figure_style import png, style
from llama_cpt.runtime.files import write_atomic
from llama_cpt.weights.model_card import markdown_table

PICTURES = {
    "differences.png": "Differences with their intervals: thick at 95 % each alone, thin corrected "
    "for their number; within the grey, a change is not felt. To the right is better.",
    "languages.png": "Bits per byte of whole documents. Compare models within a language, not "
    "languages with each other.",
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


def write_comparison(folders: Sequence[str], output: str) -> Comparison:
    """Compare the models whose scores lie in ``folders`` and write the report into ``output``.

    The first model is what the others are held against. Raises UserError as ``compare`` does.
    """
    comparison, place = compare(folders), epath.Path(output)
    place.mkdir(parents=True, exist_ok=True)
    pictures = pictures_of(comparison)
    for name in PICTURES:
        if name in pictures:
            write_atomic(place / name, pictures[name])
        else:
            (place / name).unlink(missing_ok=True)
    text = f"# {_title(comparison)}\n\n{markdown_of(comparison, '')}\n"
    write_atomic(place / "report.md", text.encode())
    write_atomic(place / "report.html", _page(comparison, pictures).encode())
    return comparison


def pictures_of(comparison: Comparison) -> dict[str, bytes]:
    """PNGs by their names, those that there is something to see on."""
    with style():
        return {name: png(draw(comparison)) for name, draw in _drawn(comparison).items()}


def markdown_of(comparison: Comparison, folder: str) -> str:
    """Findings, the table, the pictures, whose names begin with ``folder``, how to read them."""
    rows = [
        (_plain(row_name(row)), *(_markdown_cell(cell_lines(row, cell)) for cell in row.cells))
        for row in comparison.rows
    ]
    told = task_rows(comparison)
    parts = [
        "\n".join(f"- **{_plain(model)}** {_plain(said)}" for model, said in _said(comparison)),
        "\n".join(f"- **Not alike:** {_plain(remark)}" for remark in comparison.remarks),
        markdown_table(("task", *map(_plain, comparison.models)), rows),
        *(
            f"![{PICTURES[name]}]({folder}{name})\n\n{PICTURES[name]}"
            for name in _drawn(comparison)
        ),
        "\n".join(f"- {sentence}" for sentence in how_to_read(comparison)),
        markdown_table(told[0], [[_plain(cell) for cell in row] for row in told[1:]]),
    ]
    return "\n\n".join(part for part in parts if part)


def _drawn(comparison: Comparison) -> dict[str, Callable[[Comparison], Figure]]:
    drawn = {}
    if comparison.differences:
        drawn["differences.png"] = draw_differences
    if any(row.is_bits for row in comparison.rows):
        drawn["languages.png"] = draw_languages
    return drawn


def _said(comparison: Comparison) -> list[tuple[str, str]]:
    return [
        (model, "; ".join(f"{mark}: {', '.join(rows)}" for mark, rows in marks) or "not compared")
        for model, marks in findings(comparison)
    ]


def _page(comparison: Comparison, pictures: Mapping[str, bytes]) -> str:
    said = "".join(
        f"<li><b>{escape(model)}</b> {escape(told)}</li>" for model, told in _said(comparison)
    )
    said += "".join(f"<li><b>Not alike:</b> {escape(told)}</li>" for told in comparison.remarks)
    head = "".join(f"<th>{escape(name)}</th>" for name in ("task", *comparison.models))
    body = "".join(
        f"<tr><th>{escape(row_name(row))}</th>"
        + "".join(_html_cell(cell_lines(row, cell)) for cell in row.cells)
        + "</tr>"
        for row in comparison.rows
    )
    figures = "".join(
        f'<figure><img alt="{escape(PICTURES[name])}" src="data:image/png;base64,'
        f'{base64.b64encode(content).decode()}"><figcaption>{escape(PICTURES[name])}</figcaption>'
        "</figure>"
        for name, content in pictures.items()
    )
    method = "".join(f"<p>{escape(sentence)}</p>" for sentence in how_to_read(comparison))
    title = escape(_title(comparison))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{CSS}</style></head><body>\n<h1>{title}</h1>\n<ul>{said}</ul>\n"
        f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>\n{figures}\n'
        f"<h2>How to read it</h2>\n{method}\n{_html_table(task_rows(comparison))}\n</body></html>\n"
    )


def _title(comparison: Comparison) -> str:
    return f"Side by side: {', '.join(comparison.models)}"


def _markdown_cell(lines: Sequence[str]) -> str:
    return "<br>".join([*lines[:2], *(f"**{mark}**" for mark in lines[2:])])


def _html_cell(lines: Sequence[str]) -> str:
    if len(lines) < 3:
        return f"<td>{escape(lines[0])}</td>"
    score, difference, mark = map(escape, lines)
    kind = mark if " " not in mark else "open"
    return f'<td class="{kind}">{score}<br><b>{mark}</b><br><small>{difference}</small></td>'


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _plain(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
