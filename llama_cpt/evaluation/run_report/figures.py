"""Figures of the report on training runs."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
import numpy as np

from llama_cpt.evaluation.run_report.records import (
    HELDOUT,
    TRAINING,
    RunRecord,
    Series,
    union,
)
from llama_cpt.mixture_law.figure_style import amount, plain

# Colors of Okabe and Ito (2008) without yellow, which has too little contrast with white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", ":")
COLUMNS = 2
TARGET, REALIZED = "mixture/almr_target", "mixture/almr_realized"

Scale = Callable[[RunRecord], float]
"""A function that returns the horizontal distance of one step of a run."""


def draw_heldout(runs: Sequence[RunRecord]) -> Figure:
    """Draw held-out bits per byte against tokens."""
    return _panels(runs, HELDOUT, _tokens, "bits per byte", lambda one: one.values)


def draw_heldout_by_compute(runs: Sequence[RunRecord]) -> Figure:
    """Draw held-out bits per byte against model FLOPs."""
    return _panels(runs, HELDOUT, _flops, "bits per byte", lambda one: one.values)


def draw_forgetting(runs: Sequence[RunRecord]) -> Figure:
    """Draw the change of held-out bits per byte since the first evaluation of each run."""
    change = lambda one: 100 * (one.values / one.values[0] - 1)
    figure = _panels(runs, HELDOUT, _tokens, "change, %", change)
    for axes in figure.axes:
        axes.axhline(0, color="#777777", linewidth=0.8)
    return figure


def draw_training(runs: Sequence[RunRecord]) -> Figure:
    """Draw the next-token loss of each corpus against tokens."""
    return _panels(runs, TRAINING, _tokens, "nats", lambda one: one.values)


def draw_ratio(runs: Sequence[RunRecord]) -> Figure:
    """Draw the target and the realized ALMR against tokens."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(runs):
        color, line = _line(number)
        target, realized = run.series(TARGET), run.series(REALIZED)
        axes.plot(target.steps * _tokens(run), target.values, color=color, linewidth=4, alpha=0.3)
        axes.plot(realized.steps * _tokens(run), realized.values, line, color=color, label=run.name)
    _finish(axes, "tokens", "ALMR")
    _legend(figure)
    return figure


def draw_time(runs: Sequence[RunRecord]) -> Figure:
    """Draw the wall time of each part of the runs as bars."""
    figure = Figure(figsize=(8, 1.3 + 0.4 * len(runs)), layout="constrained")
    axes = figure.subplots()
    longest = max(sum(run.seconds.values()) for run in runs)
    unit, size = ("hours", 3600) if longest > 3 * 3600 else ("minutes", 60)
    parts = dict.fromkeys(part for run in runs for part, one in run.seconds.items() if one > 0)
    left = np.zeros(len(runs))
    for number, part in enumerate(parts):
        widths = np.array([run.seconds.get(part, 0.0) / size for run in runs])
        color = COLORS[number % len(COLORS)]
        alpha = 1.0 if number < len(COLORS) else 0.4
        axes.barh(range(len(runs)), widths, left=left, color=color, alpha=alpha, label=part)
        left += widths
    axes.set_yticks(range(len(runs)), [run.name for run in runs], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    plain(axes)
    _legend(figure)
    return figure


def _panels(
    runs: Sequence[RunRecord],
    pattern: str,
    scale: Scale,
    unit: str,
    transform: Callable[[Series], np.ndarray],
) -> Figure:
    """Return a figure with a panel for each corpus and a line for each run."""
    corpora = union(runs, pattern)
    rows = -(-len(corpora) // COLUMNS)
    figure = Figure(figsize=(8, 0.5 + 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axes, corpus in zip(grid, corpora, strict=False):
        for number, run in enumerate(runs):
            series = run.series(pattern.format(corpus))
            if len(series.steps):
                color, line = _line(number)
                across = series.steps * scale(run)
                axes.plot(across, transform(series), line, color=color, label=run.name)
                axes.plot(across[-1], transform(series)[-1], "o", color=color, markersize=3.5)
        axes.set_title(corpus, parse_math=False)
        _finish(axes, "tokens" if scale is _tokens else "model FLOPs", unit)
    for axes in list(grid):
        axes.remove()
    _legend(figure)
    return figure


def _tokens(run: RunRecord) -> float:
    return float(run.tokens_per_step)


def _flops(run: RunRecord) -> float:
    return run.flops_per_step


def _line(number: int) -> tuple[str, str]:
    """Return the color and the line style of run ``number``."""
    return COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]


def _finish(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    text = amount if across == "tokens" else lambda value: f"{value:.2g}"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value) if value else "0"))
    plain(axes)


def _legend(figure: Figure) -> None:
    """Add one legend with each label of any panel."""
    found = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    columns = min(len(found), 5)
    legend = figure.legend(
        list(found.values()), list(found), loc="outside lower left", ncols=columns
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
