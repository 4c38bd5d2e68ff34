"""Figures of a comparison: differences with intervals, and bits per byte of each corpus."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
import numpy as np

from llama_cpt.evaluation.comparison.compare import Comparison, Row
from llama_cpt.mixture_law.figure_style import BLUE, DARK, GREEN, GREY, VERMILION, plain

MINUS = "\N{MINUS SIGN}"
# The palette of Okabe and Ito (2008) without yellow, which has little contrast on white. Each model
# also has its own marker, so that readers do not depend on color.
COLORS = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FINDING_COLORS = {
    "gained": GREEN,
    "forgotten": VERMILION,
    "kept": DARK,
    "no significant difference": GREY,
    "inconclusive": GREY,
}


def draw_differences(comparison: Comparison) -> Figure:
    """Draw all differences; improvements are to the right of zero.

    One panel shows bits per byte, and one panel shows metrics in points.
    """
    kinds = [
        [row for row in comparison.rows if row.is_bits is is_bits] for is_bits in (True, False)
    ]
    kinds = [rows for rows in kinds if any(_differing(row) for row in rows)]
    others = len(comparison.models) - 1
    heights = [0.35 + len(rows) * (0.24 + 0.17 * others) for rows in kinds]
    figure = Figure(figsize=(8, 1.2 + sum(heights) + 0.5 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, rows in zip(panels, kinds, strict=True):
        _draw_panel(axes, rows, comparison)
    figure.legend(
        handles=[_legend_entry(index, model) for index, model in enumerate(comparison.models[1:])],
        loc="outside upper left",
        ncols=min(others, 5),
        handletextpad=0.4,
    )
    return figure


def draw_languages(comparison: Comparison) -> Figure:
    """Draw the bits per byte of all models, with one panel per corpus.

    Corpora have separate panels, because bits per byte of different languages are not comparable.
    """
    rows = [row for row in comparison.rows if row.is_bits]
    columns = min(len(rows), 3)
    lines = -(-len(rows) // columns)
    height = 0.9 + 0.26 * len(comparison.models)
    figure = Figure(figsize=(0.6 + 2.9 * columns, 0.3 + height * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for axes, row in zip(panels, rows, strict=False):
        _draw_corpus(axes, row, comparison.models)
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    return figure


def _differing(row: Row) -> bool:
    return any(cell and cell.difference for cell in row.cells)


def _draw_panel(axes: Axes, rows: Sequence[Row], comparison: Comparison) -> None:
    is_bits, margin = rows[0].is_bits, rows[0].margin
    others = len(comparison.models) - 1
    axes.axvspan(-margin, margin, color="#eeeeee", zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.9)
    for index, row in enumerate(rows):
        for number, cell in enumerate(row.cells[1:]):
            if cell and cell.difference:
                y = index + (number - (others - 1) / 2) * 0.75 / max(others, 1)
                color, found = COLORS[number % len(COLORS)], cell.difference
                # If less is better, the values are mirrored, so that improvements are to the right.
                sign = -1 if row.less_is_better and not is_bits else 1
                if found.finding != "inconclusive":
                    axes.plot(np.multiply(sign, found.interval), (y, y), color=color, linewidth=1)
                    axes.plot(np.multiply(sign, found.alone), (y, y), color=color, linewidth=2.6)
                marker = MARKERS[number % len(MARKERS)]
                axes.plot(sign * found.value, y, marker, color=color, markersize=4.5)
                axes.annotate(
                    found.finding,
                    (1.01, y),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    fontsize=8,
                    color=FINDING_COLORS[found.finding],
                    annotation_clip=False,
                )
        if index:
            axes.axhline(index - 0.5, color="#e6e6e6", linewidth=0.7)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _frame(axes)
    first = comparison.models[0]
    if is_bits:
        axes.invert_xaxis()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _signed(100 * x, " %")))
        axes.set_xlabel(f"bits per byte, change from {first} (less is better; axis reversed)")
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _signed(x, "")))
        axes.set_xlabel(f"points, change from {first} (more is better)")


def _draw_corpus(axes: Axes, row: Row, models: Sequence[str]) -> None:
    scores = {index: cell.score for index, cell in enumerate(row.cells) if cell}
    for index, score in scores.items():
        color = COLORS[(index - 1) % len(COLORS)] if index else GREY
        axes.plot((0, score), (index, index), color=color, linewidth=1)
        marker = MARKERS[(index - 1) % len(MARKERS)] if index else "o"
        axes.plot(score, index, marker, color=color, markersize=6)
        axes.annotate(
            f"{score:.3f}", (score, index), (7, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(models)), models)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(0, 1.28 * max(scores.values()))
    axes.set_title(row.name)
    axes.set_xlabel("bits per byte (less is better)")
    _frame(axes)


def _label(row: Row) -> str:
    return f"{row.name}\n(reversed)" if row.less_is_better and not row.is_bits else row.name


def _frame(axes: Axes) -> None:
    plain(axes)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def _legend_entry(index: int, model: str) -> Line2D:
    color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
    return Line2D([], [], color=color, marker=marker, linewidth=2, label=model)


def _signed(value: float, unit: str) -> str:
    return f"{value:+.3g}{unit}".replace("-", MINUS) if value else f"0{unit}"
