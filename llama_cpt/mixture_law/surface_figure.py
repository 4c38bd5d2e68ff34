"""Figure of the losses and the objective as functions of the ratio and the learning rate."""

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
    RATE_COLOR,
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

GRID_POINTS = 101
"""Number of ratios and number of learning rates in the predicted grid."""
STEPS = (-0.3, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
"""Contour levels of the relative change of the original loss from the base-model loss."""


@dataclass(frozen=True)
class View:
    """The runs and the predictions of a law at the size and token budget with the most runs."""

    law: Law

    @cached_property
    def runs(self) -> RunsTable:
        """The fitted runs at the size and token budget with the most runs."""
        runs = self.law.runs
        settings = np.nan_to_num(np.stack([runs.parameters, runs.tokens]))
        _, setting, counts = np.unique(settings, axis=1, return_inverse=True, return_counts=True)
        return runs.where(setting.ravel() == np.argmax(counts))

    @property
    def parameters(self) -> float:
        """Model size; NaN if the table does not state it."""
        return float(self.runs.parameters[0])

    @property
    def tokens(self) -> float:
        """Token budget; NaN if the table does not state it."""
        return float(self.runs.tokens[0])

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """ALMR and learning rate on a grid that spans the runs; ALMR is clipped to [0.01, 0.99]."""
        almr, lr = self.runs.almr, self.runs.learning_rate
        ratios = np.linspace(max(almr.min(), 0.01), min(almr.max(), 0.99), GRID_POINTS)
        almr, lr = np.meshgrid(ratios, np.geomspace(lr.min(), lr.max(), GRID_POINTS))
        return almr, lr

    @cached_property
    def losses(self) -> dict[str, np.ndarray]:
        """Predicted losses on the grid, by language group."""
        found = self.law.predict(*self.grid, known(self.parameters), known(self.tokens))
        return {group: np.asarray(interval.value) for group, interval in found.items()}

    @cached_property
    def base(self) -> dict[str, float]:
        """Losses of the base model by language group; NaN if the table does not state them."""
        found = self.law.base(known(self.parameters))
        return {
            group: np.nan if np.isnan(getattr(self.runs, f"base_{group}")).any() else loss
            for group, loss in found.items()
        }

    @cached_property
    def chosen(self) -> tuple[Interval, Interval] | None:
        """The recommended or extrapolated ratio and rate at this size and budget, or None."""
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
    """Return the value, or None for NaN."""
    return None if math.isnan(value) else value


def draw_surface(view: View, labels: Mapping[str, str]) -> Figure:
    """Return a figure with contours of both losses and of the objective.

    The figure also shows the runs, the optimal rate for each ratio, the bound and the
    recommendation. ``labels`` contains the labels of the groups.
    """
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    _loss(panels[0], view, labels["additional"])
    _forgetting(panels[1], view, labels["original"])
    _objective(panels[2], view)
    for axes in panels:
        _bound(axes, view)
        _marks(axes, view)
        _axes(axes, view)
    panels[0].set_ylabel("peak learning rate")
    figure.legend(handles=_legend(view), loc="outside lower center", ncols=5, handlelength=2.2)
    figure.suptitle(_title(view), fontsize=11, fontweight="bold", x=0.01, ha="left")
    return figure


def _title(view: View) -> str:
    """Return a title with the language pair, the model size and the tokens that are known."""
    pair = str(view.runs.pair[0])
    parts = [pair] if pair and drawable(pair) else []
    for value, unit in ((view.parameters, "parameters"), (view.tokens, "tokens")):
        parts += [] if math.isnan(value) else [f"{amount(value)} {unit}"]
    return ", ".join(["Losses and objective", *parts])


def _loss(axes: Axes, view: View, label: str) -> None:
    """Draw contours of the additional loss."""
    axes.set_title(f"{label}: {view.runs.unit}")
    _contours(axes, view.grid, view.losses["additional"], BLUE)


def _forgetting(axes: Axes, view: View, label: str) -> None:
    """Draw contours of the original loss relative to the base-model loss.

    Contour levels are ``STEPS``, which are closest near 0. If the base-model loss is unknown, the
    contours show the loss in the unit of the table.
    """
    base, losses = view.base["original"], view.losses["original"]
    if math.isnan(base):
        axes.set_title(f"{label}: {view.runs.unit}")
        _contours(axes, view.grid, losses, VERMILION)
        return
    axes.set_title(f"{label}: loss relative to base model")
    # Small changes matter most, so the levels are not evenly spaced.
    change = losses / base - 1
    low, high = float(change.min()), float(change.max())
    inside = [step for step in STEPS if low < step < high]
    levels = np.array([low, *inside, high]) if len(inside) > 2 else None
    _contours(axes, view.grid, change, VERMILION, levels, percent)


def _contours(
    axes: Axes,
    grid: tuple[np.ndarray, np.ndarray],
    values: np.ndarray,
    color: str,
    levels: np.ndarray | None = None,
    label: Callable[[float], str] | None = None,
) -> None:
    """Draw filled, labeled contours of ``values``, of shape (rates, ratios), on ``grid``.

    Shades are evenly spaced over the levels, even if the levels are not. By default, levels are
    round numbers and labels have as many decimals as the distance between levels requires.
    """
    if levels is None:
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        levels = np.asarray(MaxNLocator(9, min_n_ticks=5).tick_values(low, high))
    digits = max(0, 1 - math.floor(math.log10(levels[-1] - levels[-2])))
    label = label or (lambda level: f"{level:.{digits}f}")
    norm = BoundaryNorm(levels, 256)
    axes.contourf(*grid, values, levels=levels, cmap=shades(color), norm=norm, alpha=0.55)
    lines = axes.contour(*grid, values, levels=levels, colors=color, linewidths=0.7, linestyles="-")
    for text in axes.clabel(lines, fontsize=7.5, fmt=label):
        # Without clipping, labels near the edge extend beyond the axes.
        text.set_clip_on(True)


def _objective(axes: Axes, view: View) -> None:
    """Draw contours of the objective; the region with an original loss above the bound is gray."""
    objective = view.law.objective
    if isinstance(objective, Bound):
        within = view.losses["original"] <= (1 + objective.forgetting) * view.base["original"]
        axes.set_title(
            f"Objective: additional loss, original ≤ base {100 * objective.forgetting:+g} %"
        )
        axes.set_facecolor("#ececec")
        if within.any():
            values = np.where(within, view.losses["additional"], np.nan)
            _contours(axes, view.grid, values, GREEN)
        return
    axes.set_title(
        f"Objective: {objective.additional:g} × additional + {objective.original:g} × original"
    )
    values = view.law.evaluate_objective(
        view.losses["additional"], view.losses["original"], known(view.parameters)
    )
    _contours(axes, view.grid, np.asarray(values), GREEN)


def _bound(axes: Axes, view: View) -> None:
    """Draw the contour at which the original loss equals its bound."""
    objective = view.law.objective
    if isinstance(objective, Bound):
        bound = (1 + objective.forgetting) * view.base["original"]
        axes.contour(
            *view.grid, view.losses["original"], levels=[bound], colors=DARK, linewidths=1.6
        )


def _marks(axes: Axes, view: View) -> None:
    """Draw the optimal rate for each ratio, the runs and the recommendation."""
    runs, optimal_rate = view.runs, view.law.optimal_rate
    if optimal_rate and _same(optimal_rate.parameters, view.parameters):
        interval = optimal_rate.learning_rate
        axes.fill_between(
            optimal_rate.almr,
            interval.low,
            interval.high,
            color=RATE_COLOR,
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(optimal_rate.almr, interval.value, "--", color=RATE_COLOR, linewidth=1.6)
    axes.plot(
        runs.almr, runs.learning_rate, "o", markersize=4, mfc="white", mec=DARK, mew=0.9,
        clip_on=False, zorder=3,
    )  # fmt: skip
    if view.chosen:
        almr, lr = view.chosen
        axes.errorbar(
            almr.value, lr.value,
            xerr=half_widths(almr), yerr=half_widths(lr),
            fmt="*", markersize=15, mfc=CHOICE, mec=DARK, ecolor=DARK, elinewidth=1.6,
            capsize=3, zorder=4,
        )  # fmt: skip


def _axes(axes: Axes, view: View) -> None:
    """Set scales, limits, ticks and labels of the axes."""
    rates = np.unique(view.runs.learning_rate)
    axes.set_yscale("log")
    if len(rates) <= 9:
        axes.set_yticks(rates)
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate(value)))
    axes.set_xlabel("ALMR, share of additional tokens")
    margin = 0.03 * np.ptp(view.runs.almr)
    axes.set_xlim(view.runs.almr.min() - margin, view.runs.almr.max() + margin)
    # A margin in log rate keeps the markers of the outermost runs visible.
    margin = (rates[-1] / rates[0]) ** 0.05
    axes.set_ylim(rates[0] / margin, rates[-1] * margin)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2)


def half_widths(interval: Interval) -> list[list[float]]:
    """Return the lower and the upper error of one point in Matplotlib's format, (2, 1)."""
    return [[float(interval.value - interval.low)], [float(interval.high - interval.value)]]


def _legend(view: View) -> list[Line2D | Patch]:
    """Return the legend entries for the runs, optimal rates, bound and recommendation."""
    handles: list[Line2D | Patch] = [
        Line2D([], [], marker="o", linestyle="", mfc="white", mec=DARK, label="run")
    ]
    if view.law.optimal_rate:
        label = "optimal rate for each ratio, 90 % interval"
        handles.append(Line2D([], [], color=RATE_COLOR, linestyle="--", linewidth=1.6, label=label))
    if isinstance(view.law.objective, Bound):
        label = f"bound: base model {100 * view.law.objective.forgetting:+g} %"
        handles.append(Line2D([], [], color=DARK, linewidth=1.6, label=label))
        handles.append(Patch(facecolor="#ececec", label="above the bound"))
    if view.chosen:
        label = "recommendation, 90 % interval"
        handles.append(
            Line2D(
                [], [], linestyle="", marker="*", markersize=12, mfc=CHOICE, mec=DARK, label=label
            )
        )
    return handles


def _same(one: float, other: float) -> bool:
    """Return whether two sizes or budgets differ by at most 1 %, or are both unknown (NaN)."""
    return math.isclose(one, other, rel_tol=0.01) or (math.isnan(one) and math.isnan(other))
