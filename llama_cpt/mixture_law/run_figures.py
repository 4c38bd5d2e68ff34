"""Pictures of the runs: what happened inside them, and how well a law has their ends."""

from collections.abc import Mapping, Sequence

from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
)
import numpy as np

from llama_cpt.mixture_law.figure_style import (
    DARK,
    GREY,
    GROUP_COLOURS,
    MARKERS,
    RATIO_COLOURS,
    amount,
    percent,
    plain,
    rate,
    ratio_norm,
)
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.objective import Bound, Objective
from llama_cpt.mixture_law.results import Curve
from llama_cpt.mixture_law.runs_table import GROUPS, RunsTable
from llama_cpt.mixture_law.surface_figure import known

MOST_PANELS = 5
# Where runs lose more than this, the axis is logarithmic beyond a tenth.
WIDE = 0.6
WIDE_TICKS = (-0.3, -0.1, -0.05, 0, 0.05, 0.1, 0.3, 1, 3, 10, 30)


def draw_forgetting(
    curves: Sequence[Curve], points: RunsTable, goal: Objective, labels: Mapping[str, str]
) -> Figure:
    """Both losses against tokens inside the runs, a column a rate, coloured by ratio."""
    rates = _spread(np.unique(points.learning_rate), MOST_PANELS)
    figure = Figure(figsize=(2.5 + 2.1 * len(rates), 4.8), layout="constrained")
    panels = figure.subplots(2, len(rates), sharex=True, sharey="row", squeeze=False)
    colours = ratio_norm(points.almr)
    for column, value in zip(panels.T, rates, strict=True):
        column[0].set_title(f"rate {rate(value)}")
        for place in np.flatnonzero(points.learning_rate == value):
            colour = RATIO_COLOURS(colours(points.almr[place]))
            for axes, group in zip(column, GROUPS, strict=True):
                base = getattr(points, f"base_{group}")[place]
                losses = getattr(curves[place], group)
                change = losses / (losses[0] if np.isnan(base) else base) - 1
                axes.plot(curves[place].tokens, change, color=colour, linewidth=1.4)
        column[1].set_xlabel("tokens")
        column[1].xaxis.set_major_locator(MaxNLocator(4))
        column[1].xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: amount(tokens)))
    for axes in panels.flat:
        plain(axes)
        axes.axhline(0, color=GREY, linewidth=0.9)
        axes.yaxis.set_major_formatter(FuncFormatter(percent))
    _lower_row(panels[1], goal)
    panels[0, 0].set_ylabel(f"{labels['additional']}:\nloss against its base")
    panels[1, 0].set_ylabel(f"{labels['original']}:\nloss against its base")
    size = f"{amount(points.parameters[0])} parameters"
    title = f"Gained and forgotten inside the runs, {size}"
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    figure.colorbar(ScalarMappable(colours, RATIO_COLOURS), ax=panels, label="ALMR", pad=0.01)
    return figure


def draw_fit(law: Law, labels: Mapping[str, str]) -> Figure:
    """Predicted against measured losses, and the errors beneath, by size."""
    points, predicted = law.runs, _predicted(law)
    figure = Figure(figsize=(8.4, 5.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", height_ratios=(2.6, 1))
    for (above, below), group in zip(panels.T, GROUPS, strict=True):
        measured, found = getattr(points, group), predicted[group]
        ends = [min(measured.min(), found.min()), max(measured.max(), found.max())]
        above.plot(ends, ends, color=GREY, linewidth=0.9)
        below.axhline(0, color=GREY, linewidth=0.9)
        for size, marker in zip(np.unique(points.parameters), MARKERS * 9, strict=False):
            here = np.isclose(points.parameters, size, equal_nan=True)
            look = {"color": GROUP_COLOURS[group], "marker": marker, "alpha": 0.75, "lw": 0}
            label = f"{amount(size)} parameters"
            above.scatter(measured[here], found[here], s=24, label=label, **look)
            below.scatter(measured[here], found[here] / measured[here] - 1, s=20, **look)
        if group in law.noise:
            below.axhspan(-law.noise[group], law.noise[group], color="#dddddd", zorder=0)
        above.set_title(labels[group], fontweight="bold")
        above.legend(loc="upper left")
        below.set_xlabel(f"measured, {points.unit}")
        below.yaxis.set_major_locator(MaxNLocator(4))
        below.yaxis.set_major_formatter(FuncFormatter(percent))
        plain(above)
        plain(below)
    panels[0, 0].set_ylabel(f"predicted, {points.unit}")
    panels[1, 0].set_ylabel("error (grey: noise)" if law.noise else "error")
    return figure


def _lower_row(panels: np.ndarray, goal: Objective) -> None:
    """The bound, and an axis on which it can be seen beside runs that lose much."""
    low, high = panels[0].get_ylim()
    if high > WIDE:
        panels[0].set_yscale("symlog", linthresh=0.1, linscale=1.0)
        panels[0].set_ylim(min(low, -0.02), high * 1.2)
        panels[0].yaxis.set_major_locator(FixedLocator(WIDE_TICKS))
        panels[0].yaxis.set_minor_locator(NullLocator())
        panels[0].yaxis.set_major_formatter(FuncFormatter(percent))
    if isinstance(goal, Bound):
        for axes in panels:
            axes.axhline(goal.forgetting, color=DARK, linewidth=1.2, linestyle="--")
        panels[0].annotate(
            f"bound, +{100 * goal.forgetting:g}%", (1, goal.forgetting),
            xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points",
            ha="right", fontsize=8, color=DARK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )  # fmt: skip


def _predicted(law: Law) -> dict[str, np.ndarray]:
    """At the runs' own settings, by group."""
    points = law.runs
    bands = [
        law.predict(float(almr), float(lr), known(parameters), known(tokens))
        for almr, lr, parameters, tokens in zip(
            points.almr, points.learning_rate, points.parameters, points.tokens, strict=True
        )
    ]
    return {group: np.array([float(band[group].value) for band in bands]) for group in GROUPS}


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, evenly over their order."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(int)]
