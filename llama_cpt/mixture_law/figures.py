"""Figures of a law: Pareto front, extrapolation, loss versus ratio, learning curves, fit."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
import numpy as np

from llama_cpt.mixture_law.figure_style import (
    CHOICE,
    DARK,
    GREY,
    GROUP_COLORS,
    MARKERS,
    RATIO_COLORS,
    amount,
    percent,
    plain,
    rate,
    ratio_norm,
)
from llama_cpt.mixture_law.law import Exponent, Extrapolation, Law, RatioOnly
from llama_cpt.mixture_law.objective import Bound, Objective
from llama_cpt.mixture_law.runs_table import Curve, RunsTable
from llama_cpt.mixture_law.surface_figure import View, half_widths, known
from llama_cpt.mixture_law.table import GROUPS


def draw_front(view: View, labels: Mapping[str, str]) -> Figure:
    """Return a figure of the runs' losses, the Pareto fronts and the recommendation.

    ``labels`` contains the labels of the groups.
    """
    law, runs = view.law, view.runs
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    plain(axes)
    colors = ratio_norm(runs.almr)
    axes.plot(*_front(view), color=DARK, linewidth=1.6, label="predicted Pareto front", zorder=2)
    # Markers repeat after six learning rates.
    for value, marker in zip(np.unique(runs.learning_rate), MARKERS * 9, strict=False):
        some = runs.where(runs.learning_rate == value)
        axes.scatter(
            some.original, some.additional, c=some.almr, norm=colors, cmap=RATIO_COLORS,
            marker=marker, s=34, edgecolors="white", linewidths=0.5, zorder=3,
        )  # fmt: skip
        axes.plot([], [], marker, color=GREY, label=f"runs, rate {rate(value)}")
    _mark_best_runs(axes, runs)
    _bound_line(axes, law, view.base["original"])
    _mark_recommendation(axes, view)
    axes.set_xlabel(f"{labels['original']}: loss, {runs.unit}")
    axes.set_ylabel(f"{labels['additional']}: loss, {runs.unit}")
    axes.set_title("Trade-off between the two losses", fontweight="bold")
    axes.legend(loc="upper right")
    figure.colorbar(ScalarMappable(colors, RATIO_COLORS), ax=axes, label="ALMR", pad=0.01)
    return figure


def draw_extrapolation(extrapolation: Extrapolation) -> Figure:
    """Return a figure of the optimal ratio and learning rate as functions of the model size."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    ratios, rates = figure.subplots(1, 2)
    _draw_by_size(ratios, extrapolation, "almr", "almr odds")
    ratios.set_ylabel("optimal ALMR")
    ratios.set_ylim(0, 1)
    _draw_by_size(rates, extrapolation, "learning_rate", "learning rate")
    rates.set_ylabel("optimal learning rate")
    rates.set_yscale("log")
    rates.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rate(value)))
    rates.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    rates.yaxis.set_minor_formatter(NullFormatter())
    return figure


def draw_ratio(found: RatioOnly, law: Law, labels: Mapping[str, str]) -> Figure:
    """Return a figure of both losses versus the ratio, for runs with one learning rate."""
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    for axes, group in zip(figure.subplots(1, 2), GROUPS, strict=True):
        plain(axes)
        color = GROUP_COLORS[group]
        axes.plot(found.almr, getattr(found, group), color=color, linewidth=1.8)
        observed = getattr(law.runs, group)
        axes.plot(law.runs.almr, observed, "o", mfc="white", mec=color, mew=1.4, markersize=5)
        axes.set_title(labels[group], fontweight="bold")
        axes.set_xlabel("ALMR, share of additional tokens")
        axes.set_ylabel(f"loss, {law.runs.unit}")
        if group == "original":
            _mark_bounds(axes, law)
        if found.critical is not None:
            axes.axvline(found.critical, color=DARK, linewidth=1.2)
            if found.interval:
                axes.axvspan(*found.interval, color=DARK, alpha=0.10, linewidth=0)
    return figure


def _front(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Return the original and the additional losses on the Pareto front of the predictions."""
    original, additional = view.losses["original"].ravel(), view.losses["additional"].ravel()
    order = np.argsort(original)
    best = np.minimum.accumulate(additional[order])
    # In order of original loss, a point with the lowest additional loss so far is on the front.
    kept = order[additional[order] <= best]
    return original[kept], additional[kept]


def _mark_best_runs(axes: Axes, runs: RunsTable) -> None:
    """Draw the Pareto front of the runs as steps."""
    order = np.argsort(runs.original)
    kept = order[runs.additional[order] <= np.minimum.accumulate(runs.additional[order])]
    # The front is drawn as steps, because no run attained losses between two points of the front.
    axes.step(
        runs.original[kept], runs.additional[kept], where="post", color=GREY, linewidth=0.9,
        linestyle=":", label="Pareto front of the runs", zorder=1,
    )  # fmt: skip


def _bound_line(axes: Axes, law: Law, base: float) -> None:
    """Draw vertical lines at the original loss of the base model and at the bound on this loss."""
    if not np.isnan(base):
        axes.axvline(base, color=GREY, linewidth=0.9)
        _label_at_top(axes, base, "base model", "right")
    if isinstance(law.objective, Bound):
        bound = (1 + law.objective.forgetting) * base
        axes.axvline(bound, color=DARK, linewidth=1.2, linestyle="--")
        _label_at_top(axes, bound, f"+{100 * law.objective.forgetting:g}%", "left")


def _label_at_top(axes: Axes, position: float, text: str, side: str) -> None:
    """Draw a label at the top of the axes, with its ``side`` (left or right) at ``position``."""
    axes.annotate(
        text, (position, 1), xycoords=("data", "axes fraction"), ha=side, va="top",
        xytext=(3 if side == "left" else -3, -2), textcoords="offset points",
        fontsize=8, color=DARK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )  # fmt: skip


def _mark_recommendation(axes: Axes, view: View) -> None:
    """Draw the predicted losses at the recommendation, with their intervals."""
    if not view.chosen:
        return
    almr, lr = (float(interval.value) for interval in view.chosen)
    found = view.law.predict(almr, lr, known(view.parameters), known(view.tokens))
    x, y = found["original"], found["additional"]
    axes.errorbar(
        float(x.value), float(y.value), xerr=half_widths(x), yerr=half_widths(y),
        fmt="*", markersize=15, mfc=CHOICE, mec=DARK, ecolor=DARK, elinewidth=1.4, capsize=3,
        zorder=4,
        label="recommendation, 90 % interval",
    )  # fmt: skip


def _draw_by_size(axes: Axes, extrapolation: Extrapolation, name: str, exponent: str) -> None:
    """Draw the field ``name`` of the optima versus the model size, with the power law as title.

    The region beyond the fitted sizes has a gray background.
    """
    plain(axes)
    intervals = [getattr(optimum, name) for optimum in extrapolation.optima]
    sizes = [optimum.parameters for optimum in extrapolation.optima]
    axes.plot(sizes, [interval.value for interval in intervals], ":", color=GREY, linewidth=1.2)
    for optimum, interval in zip(extrapolation.optima, intervals, strict=True):
        axes.errorbar(
            optimum.parameters, interval.value, yerr=half_widths(interval),
            fmt="*" if optimum.target else "o", markersize=15 if optimum.target else 7,
            mfc=CHOICE if optimum.target else "white", mec=DARK, ecolor=DARK, elinewidth=1.4,
            capsize=3,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(sorted(set(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value)))
    axes.margins(x=0.12)
    axes.set_xlabel("parameters without embeddings")
    fitted = max(optimum.parameters for optimum in extrapolation.optima if not optimum.target)
    # The gray background marks the extrapolation.
    if fitted < max(sizes):
        axes.axvspan(fitted, max(sizes) * 1.5, color="#f2f2f2", zorder=0)
    for found in extrapolation.exponents:
        if found.of == exponent and found.over == "parameters":
            axes.set_title(_power_label(found))


def _power_label(found: Exponent) -> str:
    """Return the text of a power law: exponent, 90 % interval, and "fitted" or "prior"."""
    value, low, high = (f"{number:.2f}".replace("-", "\N{MINUS SIGN}") for number in found.power)
    of = found.of.replace("almr", "ALMR")
    origin = "prior" if found.prior else "fitted"
    return (
        rf"{of[:1].upper()}{of[1:]} ∝ $N^{{{value}}}$"
        + f"\n{origin}, 90 % interval {low} to {high}"
    )


def _mark_bounds(axes: Axes, law: Law) -> None:
    """Draw horizontal lines at the base-model loss of the original group and at the bound."""
    base = float(np.nanmean(law.runs.base_original))
    if np.isnan(base):
        return
    lines = [(base, "base model", ":")]
    if isinstance(law.objective, Bound):
        bound = (1 + law.objective.forgetting) * base
        lines.append((bound, f"{100 * law.objective.forgetting:g} % above", "--"))
    for height, text, style in lines:
        axes.axhline(height, color=DARK, linewidth=1.1, linestyle=style)
        axes.annotate(
            text, (1, height), xycoords=("axes fraction", "data"), xytext=(-3, 2),
            textcoords="offset points", ha="right", fontsize=8, color=DARK,
        )  # fmt: skip


MOST_PANELS = 5
"""Maximum number of learning rates in the figure of learning curves."""
WIDE = 0.6
"""If the original loss increases by more than this share, its axis is logarithmic above +10 %."""
WIDE_TICKS = (-0.3, -0.1, -0.05, 0, 0.05, 0.1, 0.3, 1, 3, 10, 30)


def draw_forgetting(
    curves: Sequence[Curve], runs: RunsTable, objective: Objective, labels: Mapping[str, str]
) -> Figure:
    """Return a figure of both losses, relative to the base model, versus the trained tokens.

    The figure has one column per learning rate. The color of a curve shows the ratio of the run.
    """
    rates = _thin_out(np.unique(runs.learning_rate), MOST_PANELS)
    figure = Figure(figsize=(2.5 + 2.1 * len(rates), 4.8), layout="constrained")
    panels = figure.subplots(2, len(rates), sharex=True, sharey="row", squeeze=False)
    colors = ratio_norm(runs.almr)
    for column, value in zip(panels.T, rates, strict=True):
        column[0].set_title(f"rate {rate(value)}")
        for index in np.flatnonzero(runs.learning_rate == value).tolist():
            color = RATIO_COLORS(colors(runs.almr[index]))
            for axes, group in zip(column, GROUPS, strict=True):
                base = getattr(runs, f"base_{group}")[index]
                losses = getattr(curves[index], group)
                # Without a base-model loss, the curve is relative to its first evaluation.
                change = losses / (losses[0] if np.isnan(base) else base) - 1
                axes.plot(curves[index].tokens, change, color=color, linewidth=1.4)
        column[1].set_xlabel("tokens")
        column[1].xaxis.set_major_locator(MaxNLocator(4))
        column[1].xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: amount(tokens)))
    for axes in panels.flat:
        plain(axes)
        axes.axhline(0, color=GREY, linewidth=0.9)
        axes.yaxis.set_major_formatter(FuncFormatter(percent))
    _lower_row(panels[1], objective)
    panels[0, 0].set_ylabel(f"{labels['additional']}:\nloss relative to base model")
    panels[1, 0].set_ylabel(f"{labels['original']}:\nloss relative to base model")
    size = f"{amount(runs.parameters[0])} parameters"
    title = f"Loss during training relative to the base model, {size}"
    figure.suptitle(title, fontsize=11, fontweight="bold", x=0.01, ha="left")
    figure.colorbar(ScalarMappable(colors, RATIO_COLORS), ax=panels, label="ALMR", pad=0.01)
    return figure


def draw_fit(law: Law, labels: Mapping[str, str]) -> Figure:
    """Return a figure of predicted versus observed losses, with the relative errors below.

    Each model size has its own marker.
    """
    runs, predicted = law.runs, _predicted(law)
    figure = Figure(figsize=(8.4, 5.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", height_ratios=(2.6, 1))
    for (above, below), group in zip(panels.T, GROUPS, strict=True):
        observed, found = getattr(runs, group), predicted[group]
        ends = [min(observed.min(), found.min()), max(observed.max(), found.max())]
        above.plot(ends, ends, color=GREY, linewidth=0.9)
        below.axhline(0, color=GREY, linewidth=0.9)
        for size, marker in zip(np.unique(runs.parameters), MARKERS * 9, strict=False):
            here = np.isclose(runs.parameters, size, equal_nan=True)
            style = {"color": GROUP_COLORS[group], "marker": marker, "alpha": 0.75, "lw": 0}
            label = f"{amount(size)} parameters"
            above.scatter(observed[here], found[here], s=24, label=label, **style)
            below.scatter(observed[here], found[here] / observed[here] - 1, s=20, **style)
        if group in law.noise:
            below.axhspan(-law.noise[group], law.noise[group], color="#dddddd", zorder=0)
        above.set_title(labels[group], fontweight="bold")
        above.legend(loc="upper left")
        below.set_xlabel(f"observed loss, {runs.unit}")
        below.yaxis.set_major_locator(MaxNLocator(4))
        below.yaxis.set_major_formatter(FuncFormatter(percent))
        plain(above)
        plain(below)
    panels[0, 0].set_ylabel(f"predicted loss, {runs.unit}")
    panels[1, 0].set_ylabel("error (gray: noise)" if law.noise else "error")
    return figure


def _lower_row(panels: np.ndarray, objective: Objective) -> None:
    """Scale the axes of the original loss, and draw its bound.

    If losses increase by more than ``WIDE``, the scale is logarithmic above an increase of 10 %,
    so that the bound remains visible.
    """
    low, high = panels[0].get_ylim()
    # On a linear axis, a run with a large increase would hide the differences between the others.
    if high > WIDE:
        panels[0].set_yscale("symlog", linthresh=0.1, linscale=1.0)
        panels[0].set_ylim(min(low, -0.02), high * 1.2)
        panels[0].yaxis.set_major_locator(FixedLocator(WIDE_TICKS))
        panels[0].yaxis.set_minor_locator(NullLocator())
        panels[0].yaxis.set_major_formatter(FuncFormatter(percent))
    if isinstance(objective, Bound):
        for axes in panels:
            axes.axhline(objective.forgetting, color=DARK, linewidth=1.2, linestyle="--")
        panels[0].annotate(
            f"bound, +{100 * objective.forgetting:g}%", (1, objective.forgetting),
            xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points",
            ha="right", fontsize=8, color=DARK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )  # fmt: skip


def _predicted(law: Law) -> dict[str, np.ndarray]:
    """Return the predicted loss of each run by language group."""
    runs = law.runs
    intervals = [
        law.predict(float(almr), float(lr), known(parameters), known(tokens))
        for almr, lr, parameters, tokens in zip(
            runs.almr, runs.learning_rate, runs.parameters, runs.tokens, strict=True
        )
    ]
    return {
        group: np.array([float(interval[group].value) for interval in intervals])
        for group in GROUPS
    }


def _thin_out(values: np.ndarray, most: int) -> np.ndarray:
    """Return at most ``most`` of the values, at evenly spaced indices."""
    if len(values) <= most:
        return values
    return values[np.linspace(0, len(values) - 1, most).round().astype(int)]
