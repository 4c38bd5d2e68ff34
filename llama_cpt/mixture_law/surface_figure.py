"""The figure of a law at one size: both losses and the objective over ratio and learning rate."""

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
STEPS = (-0.3, -0.2, -0.1, -0.05, -0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
"""Contour levels of a loss relative to its base."""


@dataclass(frozen=True)
class View:
    """A law at the size and budget with the most runs: measured runs and predictions."""

    law: Law

    @cached_property
    def measured(self) -> RunsTable:
        """The runs of that size and budget."""
        runs = self.law.runs
        settings = np.nan_to_num(np.stack([runs.parameters, runs.tokens]))
        _, setting, counts = np.unique(settings, axis=1, return_inverse=True, return_counts=True)
        return runs.where(setting.ravel() == np.argmax(counts))

    @property
    def parameters(self) -> float:
        """Number of parameters of the model."""
        return float(self.measured.parameters[0])

    @property
    def tokens(self) -> float:
        """Number of tokens of the runs."""
        return float(self.measured.tokens[0])

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Ratios and learning rates over the measured range, without ratios of 0 and 1."""
        almr, lr = self.measured.almr, self.measured.learning_rate
        ratios = np.linspace(max(almr.min(), 0.01), min(almr.max(), 0.99), GRID_POINTS)
        return tuple(np.meshgrid(ratios, np.geomspace(lr.min(), lr.max(), GRID_POINTS)))

    @cached_property
    def losses(self) -> dict[str, np.ndarray]:
        """Predicted losses on the grid, by group."""
        found = self.law.predict(*self.grid, known(self.parameters), known(self.tokens))
        return {group: np.asarray(interval.value) for group, interval in found.items()}

    @cached_property
    def base(self) -> dict[str, float]:
        """Losses before the first step; NaN if the table does not state them."""
        found = self.law.base(known(self.parameters))
        return {
            group: np.nan if np.isnan(getattr(self.measured, f"base_{group}")).any() else loss
            for group, loss in found.items()
        }

    @cached_property
    def chosen(self) -> tuple[Interval, Interval] | None:
        """The recommended ratio and rate at this size; None without one."""
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
    """Return a value that a table states, otherwise None."""
    return None if math.isnan(value) else value


def draw_surface(view: View, labels: Mapping[str, str]) -> Figure:
    """Draw contours of both losses and of the objective, with best rates, runs and recommendation.

    ``labels`` are the names of the groups.
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
    """Return a title with the pair, the size and the tokens, as far as they are known."""
    pair = str(view.measured.pair[0])
    parts = [pair] if pair and drawable(pair) else []
    for value, unit in ((view.parameters, "parameters"), (view.tokens, "tokens")):
        parts += [] if math.isnan(value) else [f"{amount(value)} {unit}"]
    return ", ".join(["Losses and objective", *parts])


def _loss(axes: Axes, view: View, label: str) -> None:
    axes.set_title(f"{label}: {view.measured.unit}")
    _contours(axes, view.grid, view.losses["additional"], BLUE)


def _forgetting(axes: Axes, view: View, label: str) -> None:
    """Draw the original loss relative to its base, with fine contour levels near the base."""
    base, losses = view.base["original"], view.losses["original"]
    if math.isnan(base):
        axes.set_title(f"{label}: {view.measured.unit}")
        _contours(axes, view.grid, losses, VERMILION)
        return
    axes.set_title(f"{label}: loss relative to its base")
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
    """Draw shaded, labeled contours; every step has its own shade, whatever its height."""
    if levels is None:
        low, high = np.nanmin(values), np.nanmax(values)
        levels = MaxNLocator(9, min_n_ticks=5).tick_values(low, high)
    # As many decimals as the step between levels needs.
    digits = max(0, 1 - math.floor(math.log10(levels[-1] - levels[-2])))
    label = label or (lambda level: f"{level:.{digits}f}")
    shade = {"cmap": shades(color), "norm": BoundaryNorm(levels, 256), "alpha": 0.55}
    axes.contourf(*grid, values, levels=levels, **shade)
    lines = axes.contour(*grid, values, levels=levels, colors=color, linewidths=0.7, linestyles="-")
    for text in axes.clabel(lines, fontsize=7.5, fmt=label):
        # Labels near the edge would otherwise extend beyond the axes.
        text.set_clip_on(True)


def _objective(axes: Axes, view: View) -> None:
    objective = view.law.objective
    if isinstance(objective, Bound):
        within = view.losses["original"] <= (1 + objective.forgetting) * view.base["original"]
        axes.set_title(
            f"Objective: additional loss, original within {100 * objective.forgetting:g} %"
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
    _contours(axes, view.grid, values, GREEN)


def _bound(axes: Axes, view: View) -> None:
    objective = view.law.objective
    if isinstance(objective, Bound):
        bound = (1 + objective.forgetting) * view.base["original"]
        axes.contour(
            *view.grid, view.losses["original"], levels=[bound], colors=DARK, linewidths=1.6
        )


def _marks(axes: Axes, view: View) -> None:
    runs, optimal_rate = view.measured, view.law.optimal_rate
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
    margin = 0.03 * np.ptp(view.measured.almr)
    axes.set_xlim(view.measured.almr.min() - margin, view.measured.almr.max() + margin)
    margin = (rates[-1] / rates[0]) ** 0.05
    axes.set_ylim(rates[0] / margin, rates[-1] * margin)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2)


def _legend(view: View) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], marker="o", linestyle="", mfc="white", mec=DARK, label="run")
    ]
    if view.law.optimal_rate:
        label = "best rate for each ratio, 90 % interval"
        handles.append(Line2D([], [], color=RATE_COLOR, linestyle="--", linewidth=1.6, label=label))
    if isinstance(view.law.objective, Bound):
        label = f"original loss {100 * view.law.objective.forgetting:g} % above its base"
        handles.append(Line2D([], [], color=DARK, linewidth=1.6, label=label))
        handles.append(Patch(facecolor="#ececec", label="more forgetting"))
    if view.chosen:
        label = "recommendation at this size, 90 % interval"
        star = {"marker": "*", "markersize": 12, "mfc": CHOICE, "mec": DARK}
        handles.append(Line2D([], [], linestyle="", label=label, **star))
    return handles


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0.01) or (math.isnan(one) and math.isnan(other))
