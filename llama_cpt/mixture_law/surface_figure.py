"""The picture of a law at one size: both losses and the goal over ratio and rate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
import math

from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
import numpy as np

from llama_cpt.mixture_law.figure_style import (
    BLUE,
    CHOICE,
    DARK,
    GREEN,
    RIDGE,
    VERMILION,
    amount,
    drawable,
    percent,
    rate,
    shades,
)
from llama_cpt.mixture_law.intervals import Interval
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.objective import Bound
from llama_cpt.mixture_law.runs_table import RunsTable

FINENESS = 101
STEPS = (-0.3, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
"""Of a loss against its base, between which contours are drawn."""


@dataclass(frozen=True)
class View:
    """A law at the size and budget with the most runs: what was measured, what is predicted."""

    law: Law

    @cached_property
    def measured(self) -> RunsTable:
        """The runs of that size and budget."""
        points = self.law.runs
        places = np.nan_to_num(np.stack([points.parameters, points.tokens]))
        _, place, counts = np.unique(places, axis=1, return_inverse=True, return_counts=True)
        return points.where(place.ravel() == np.argmax(counts))

    @property
    def parameters(self) -> float:
        """Of the model."""
        return float(self.measured.parameters[0])

    @property
    def tokens(self) -> float:
        """Of the runs."""
        return float(self.measured.tokens[0])

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """ALMR and LR over the measured range; ends at which a form is singular are left out."""
        almr, lr = self.measured.almr, self.measured.learning_rate
        ratios = np.linspace(max(almr.min(), 0.01), min(almr.max(), 0.99), FINENESS)
        return tuple(np.meshgrid(ratios, np.geomspace(lr.min(), lr.max(), FINENESS)))

    @cached_property
    def losses(self) -> dict[str, np.ndarray]:
        """Predicted on the grid, by group."""
        found = self.law.predict(*self.grid, known(self.parameters), known(self.tokens))
        return {group: np.asarray(band.value) for group, band in found.items()}

    @cached_property
    def base(self) -> dict[str, float]:
        """Losses before the first step; NaN where the table does not say."""
        found = self.law.base(known(self.parameters))
        return {
            group: np.nan if np.isnan(getattr(self.measured, f"base_{group}")).any() else loss
            for group, loss in found.items()
        }

    @cached_property
    def chosen(self) -> tuple[Interval, Interval] | None:
        """Ratio and rate that the law chooses at this size; None where it refuses to."""
        found = self.law.recommendation
        here = (self.parameters, self.tokens)
        if not found:
            return None
        if all(map(_same, (found.parameters, found.tokens), here)):
            return found.almr, found.learning_rate
        for optimum in self.law.extrapolation.optima if self.law.extrapolation else ():
            if all(map(_same, (optimum.parameters, optimum.tokens), here)):
                return optimum.almr, optimum.learning_rate
        return None


def known(value: float) -> float | None:
    """What a table says, else None."""
    return None if math.isnan(value) else value


def draw_surface(view: View, labels: Mapping[str, str]) -> Figure:
    """Contours of both losses and of the goal, with the ridge, the runs and the choice.

    ``labels`` name the groups.
    """
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    _loss(panels[0], view, labels["additional"])
    _forgetting(panels[1], view, labels["original"])
    _goal(panels[2], view)
    for axes in panels:
        _bound(axes, view)
        _marks(axes, view)
        _axes(axes, view)
    panels[0].set_ylabel("peak learning rate")
    figure.legend(handles=_legend(view), loc="outside lower center", ncols=5, handlelength=2.2)
    figure.suptitle(_title(view), fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


def _title(view: View) -> str:
    """What is known of the runs: pair, size, tokens."""
    pair = str(view.measured.pair[0])
    told = [pair] if pair and drawable(pair) else []
    for value, unit in ((view.parameters, "parameters"), (view.tokens, "tokens")):
        told += [] if math.isnan(value) else [f"{amount(value)} {unit}"]
    return ", ".join(["Losses and goal", *told])


def _loss(axes: Axes, view: View, label: str) -> None:
    axes.set_title(f"{label}: {view.measured.unit}")
    _contours(axes, view.grid, view.losses["additional"], BLUE)


def _forgetting(axes: Axes, view: View, label: str) -> None:
    """The original loss against its base, in steps that are fine near it."""
    base, losses = view.base["original"], view.losses["original"]
    if math.isnan(base):
        axes.set_title(f"{label}: {view.measured.unit}")
        _contours(axes, view.grid, losses, VERMILION)
        return
    axes.set_title(f"{label}: loss against its base")
    change = losses / base - 1
    low, high = float(change.min()), float(change.max())
    inside = [step for step in STEPS if low < step < high]
    levels = np.array([low, *inside, high]) if len(inside) > 2 else None
    _contours(axes, view.grid, change, VERMILION, levels, percent)


def _contours(
    axes: Axes,
    grid: tuple[np.ndarray, np.ndarray],
    values: np.ndarray,
    colour: str,
    levels: np.ndarray | None = None,
    label: Callable[[float], str] | None = None,
) -> None:
    """Shades and labelled lines; the shades differ by step, whatever its height."""
    if levels is None:
        low, high = np.nanmin(values), np.nanmax(values)
        levels = MaxNLocator(9, min_n_ticks=5).tick_values(low, high)
    digits = max(0, 1 - math.floor(math.log10(levels[-1] - levels[-2])))
    label = label or (lambda level: f"{level:.{digits}f}")
    shade = {"cmap": shades(colour), "norm": BoundaryNorm(levels, 256), "alpha": 0.55}
    axes.contourf(*grid, values, levels=levels, **shade)
    lines = axes.contour(
        *grid, values, levels=levels, colors=colour, linewidths=0.7, linestyles="-"
    )
    for text in axes.clabel(lines, fontsize=7.5, fmt=label):
        text.set_clip_on(True)


def _goal(axes: Axes, view: View) -> None:
    goal = view.law.objective
    if isinstance(goal, Bound):
        within = view.losses["original"] <= (1 + goal.forgetting) * view.base["original"]
        axes.set_title(f"Goal: additional loss, original within {100 * goal.forgetting:g} %")
        axes.set_facecolor("#ececec")
        if within.any():
            values = np.where(within, view.losses["additional"], np.nan)
            _contours(axes, view.grid, values, GREEN)
        return
    axes.set_title(f"Goal: {goal.additional:g} × additional + {goal.original:g} × original")
    values = view.law.evaluate_objective(
        view.losses["additional"], view.losses["original"], known(view.parameters)
    )
    _contours(axes, view.grid, values, GREEN)


def _bound(axes: Axes, view: View) -> None:
    goal = view.law.objective
    if isinstance(goal, Bound):
        bound = (1 + goal.forgetting) * view.base["original"]
        axes.contour(
            *view.grid, view.losses["original"], levels=[bound], colors=DARK, linewidths=1.6
        )


def _marks(axes: Axes, view: View) -> None:
    runs, ridge = view.measured, view.law.optimal_rate
    if ridge and _same(ridge.parameters, view.parameters):
        band = ridge.learning_rate
        axes.fill_between(ridge.almr, band.low, band.high, color=RIDGE, alpha=0.15, linewidth=0)
        axes.plot(ridge.almr, band.value, "--", color=RIDGE, linewidth=1.6)
    axes.plot(
        runs.almr, runs.learning_rate, "o", markersize=4, mfc="white", mec=DARK, mew=0.9,
        clip_on=False, zorder=3,
    )  # fmt: skip
    if view.chosen:
        almr, lr = view.chosen
        axes.errorbar(
            almr.value, lr.value,
            xerr=[[almr.value - almr.low], [almr.high - almr.value]],
            yerr=[[lr.value - lr.low], [lr.high - lr.value]],
            fmt="*", markersize=15, mfc=CHOICE, mec=DARK, ecolor=DARK, elinewidth=1.6,
            capsize=3, zorder=4,
        )  # fmt: skip


def _axes(axes: Axes, view: View) -> None:
    rates = np.unique(view.measured.learning_rate)
    axes.set_yscale("log")
    if len(rates) <= 9:
        axes.set_yticks(rates)
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate(value)))
    axes.set_xlabel("ALMR, share of additional tokens")
    room = 0.03 * np.ptp(view.measured.almr)
    axes.set_xlim(view.measured.almr.min() - room, view.measured.almr.max() + room)
    room = (rates[-1] / rates[0]) ** 0.05
    axes.set_ylim(rates[0] / room, rates[-1] * room)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2)


def _legend(view: View) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], marker="o", linestyle="", mfc="white", mec=DARK, label="run")
    ]
    if view.law.optimal_rate:
        label = "best rate for each ratio, 90 %"
        handles.append(Line2D([], [], color=RIDGE, linestyle="--", linewidth=1.6, label=label))
    if isinstance(view.law.objective, Bound):
        label = f"original loss {100 * view.law.objective.forgetting:g} % above its base"
        handles.append(Line2D([], [], color=DARK, linewidth=1.6, label=label))
        handles.append(Patch(facecolor="#ececec", label="forgets more"))
    if view.chosen:
        label = "the choice at this size, 90 %"
        star = {"marker": "*", "markersize": 12, "mfc": CHOICE, "mec": DARK}
        handles.append(Line2D([], [], linestyle="", label=label, **star))
    return handles


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0.01) or (math.isnan(one) and math.isnan(other))
