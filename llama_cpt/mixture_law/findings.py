"""A law as text, table rows and training options, for the terminal, the report and ``train``."""

from collections.abc import Callable, Mapping, Sequence
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from llama_cpt.mixture_law.figure_style import amount, rate
from llama_cpt.mixture_law.intervals import Interval
from llama_cpt.mixture_law.law import FormFit, Law, Pareto, Recommendation
from llama_cpt.mixture_law.objective import Bound, Objective
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.table import GROUPS

Rows = list[tuple[str, ...]]


def format_objective(objective: Objective) -> str:
    """Return the objective as a phrase."""
    if isinstance(objective, Bound):
        return (
            f"the lowest additional loss with the original at most "
            f"{100 * objective.forgetting:g} % above its base"
        )
    return (
        f"the lowest {objective.additional:g} * additional + {objective.original:g} * original loss"
    )


def conclusion(law: Law) -> list[str]:
    """Return the recommendation with its intervals, or the refusal with its reasons, as lines."""
    if law.recommendation:
        return _recommended(law.recommendation, law.runs.unit)
    lines = [law.ratio_only.finding] if law.ratio_only else []
    if law.ratio_only and law.ratio_only.interval:
        low, high = law.ratio_only.interval
        lines.append(f"90 % interval of that ALMR: {low:.3f} to {high:.3f}.")
    reasons = law.refusal.reasons if law.refusal else ()
    return [*lines, "No recommendation:", *(f"- {reason}" for reason in reasons)]


def _recommended(found: Recommendation, unit: str) -> list[str]:
    almr, lr = found.almr, found.learning_rate
    lines = [
        f"ALMR {almr.value:.3f} (90 % interval {almr.low:.3f} to {almr.high:.3f}), "
        f"peak learning rate {rate(lr.value)} ({rate(lr.low)} to {rate(lr.high)})"
    ]
    if not np.isnan([found.parameters, found.tokens]).all():
        lines[0] += f"; {amount(found.parameters)} parameters, {amount(found.tokens)} tokens"
    lines += [
        f"predicted {group} loss {format_loss(found.losses[group])} {unit}"
        + compare_with_base(found.losses[group], found.base.get(group, np.nan))
        for group in GROUPS
    ]
    return lines + [f"note: {note}" for note in (found.poor_fit, found.extrapolation) if note]


def format_loss(interval: Interval) -> str:
    """Return a loss with its interval."""
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def compare_with_base(interval: Interval, base: float) -> str:
    """Return a loss relative to that of the base; empty if the base is unknown."""
    return "" if np.isnan(base) else f", {interval.value / base - 1:+.1%} relative to its base"


def format_optimal_rate(law: Law) -> str:
    """Return the line of the best rate for each ratio; empty without one."""
    if not law.optimal_rate:
        return ""
    slope, intercept = law.optimal_rate.slope, law.optimal_rate.intercept
    return (
        f"Best rate for each ratio at {amount(law.optimal_rate.parameters)} parameters: "
        f"log(LR) = {intercept.value:.2f} {slope.value:+.2f} * log(ALMR / (1 - ALMR)); "
        f"90 % interval of the slope {slope.low:+.2f} to {slope.high:+.2f}."
    )


def form_rows(law: Law) -> Rows:
    """Return every form's held-out errors in percent, by group, the selected form first."""
    rows: Rows = [
        (
            "group",
            "form",
            "held-out error: run",
            "ratio",
            "rate",
            "size",
            "all",
            "residual",
            "weight",
            "",
        )
    ]
    for fit in sorted(law.forms, key=lambda fit: (fit.group, not fit.chosen, -fit.weight)):
        rows.append((fit.group, fit.form, *_errors(fit), _remark(fit)))
    return rows


def _errors(fit: FormFit) -> tuple[str, ...]:
    out = fit.held_out
    errors = [None] * 5
    if out:
        errors = [out.run, out.ratio, out.learning_rate, out.size, out.overall]
    return *(_percent(error) for error in (*errors, fit.residual)), f"{fit.weight:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None or not np.isfinite(share) else f"{share:.2%}"


def _remark(fit: FormFit) -> str:
    remarks = ["selected"] if fit.chosen else []
    remarks += [f"{fit.left_out} runs at ALMR 0 or 1 left out of its fit"] if fit.left_out else []
    return "; ".join(remarks + ([fit.refusal] if fit.refusal else []))


def next_rows(law: Law) -> Rows:
    """Return the runs that would narrow the recommendation most, in order."""
    rows: Rows = [("ALMR", "learning rate", "remaining variance of the optimum")]
    rows += [(f"{r.almr:.3f}", rate(r.learning_rate), f"{r.remaining:.0%}") for r in law.next_runs]
    return rows


def extrapolation_rows(law: Law) -> Rows:
    """Return the optimum by size."""
    rows: Rows = [("parameters", "tokens", "ALMR", "learning rate", "")]
    for optimum in law.extrapolation.optima if law.extrapolation else ():
        almr, lr = optimum.almr, optimum.learning_rate
        rows.append(
            (
                amount(optimum.parameters),
                amount(optimum.tokens),
                f"{almr.value:.3f} ({almr.low:.3f} to {almr.high:.3f})",
                f"{rate(lr.value)} ({rate(lr.low)} to {rate(lr.high)})",
                "extrapolated" if optimum.target else "fitted",
            )
        )
    return rows


def format_exponents(law: Law) -> list[str]:
    """Return a sentence for each power by which the optimum moves."""
    return [
        f"{found.of.replace('almr', 'ALMR')} scales as {found.over}^{found.power.value:.3f} "
        f"(90 % interval {found.power.low:.3f} to {found.power.high:.3f}), "
        + (f"a prior: {found.prior}." if found.prior else "fitted.")
        for found in (law.extrapolation.exponents if law.extrapolation else ())
    ]


def pair_rows(law: Law) -> Rows:
    """Return each pair's optimum and its difference from the first's."""
    rows: Rows = [("", "pair", "ALMR", "learning rate", "ALMR minus first", "decades of rate", "")]
    for number, pair in enumerate(law.pairs, 1):
        almr, lr = pair.almr, pair.learning_rate
        rows.append(
            (
                str(number),
                pair.pair,
                f"{almr.value:.3f} ({almr.low:.3f} to {almr.high:.3f})" if almr else "",
                f"{rate(lr.value)} ({rate(lr.low)} to {rate(lr.high)})" if lr else "",
                _difference(pair.almr_difference, number),
                _difference(pair.decades_difference, number),
                str(pair.refusal or ""),
            )
        )
    return rows


def _difference(interval: Interval | None, number: int) -> str:
    if interval is None or number == 1:
        return ""
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def front_rows(front: Pareto) -> Rows:
    """Return the runs on a Pareto front."""
    rows: Rows = [("run", "ALMR", "learning rate", "additional loss", "original loss")]
    for index in np.argsort(front.original):
        rows.append(
            (
                str(front.run[index]),
                f"{front.almr[index]:g}",
                rate(front.learning_rate[index]),
                f"{front.additional[index]:.4f}",
                f"{front.original[index]:.4f}",
            )
        )
    return rows


def grid_rows(runs: RunsTable) -> Rows:
    """Return the distinct settings of a table."""

    def distinct(values: np.ndarray, show: Callable[[Any], str]) -> str:
        return ", ".join(show(value) for value in np.unique(values))

    return [
        ("", ""),
        ("runs", str(len(runs))),
        ("ALMR", distinct(runs.almr, lambda v: f"{v:g}")),
        ("learning rate", distinct(runs.learning_rate, rate)),
        ("parameters", distinct(runs.parameters, amount)),
        ("tokens", distinct(runs.tokens, amount)),
        ("schedule", distinct(runs.schedule, str)),
        ("pair", distinct(runs.pair, str)),
        ("losses in", runs.unit),
    ]


def prediction_rows(
    settings: Sequence[Mapping[str, float]], law: Law, **target: float | None
) -> Rows:
    """Return predicted losses with their intervals; ``target`` is the size and tokens."""
    rows: Rows = [("ALMR", "learning rate", *(f"{g} loss, {law.runs.unit}" for g in GROUPS))]
    for setting in settings:
        found = law.predict(setting["almr"], setting["learning_rate"], **target)
        losses = (format_loss(found[group]) for group in GROUPS)
        rows.append((f"{setting['almr']:g}", rate(setting["learning_rate"]), *losses))
    return rows


CONFIG = '''"""{summary}
"""

from dataclasses import replace
from pathlib import Path

from llama_cpt.config.loading import load_config

base = load_config(str(Path(__file__).parent / {base}))
config = replace(
    base,
    data=replace(base.data, almr={almr}),
    optimizer=replace(base.optimizer, peak_learning_rate={learning_rate}),
)
'''


def as_config(law: Law, base: str, folder: str) -> str:
    """Return a Python config for ``folder``: ``base`` with the recommended ratio and rate."""
    # A relative path, so that the folders can be moved together.
    path = os.path.relpath(Path(base).resolve(), Path(folder).resolve())
    # The summary becomes a docstring: its names must not end or escape it.
    summary = "\n".join(_summary(law)).replace("\\", "/").replace('"""', "'''")
    return CONFIG.format(
        summary=summary, base=json.dumps(Path(path).as_posix(), ensure_ascii=False), **_values(law)
    )


def as_options(law: Law) -> str:
    """Return options for ``train``, preceded by the recommendation as comments."""
    values = _values(law)
    options = (
        f"--data.almr {values['almr']} --optimizer.peak-learning-rate {values['learning_rate']}"
    )
    return "\n".join([*(f"# {line}".rstrip() for line in _summary(law)), options]) + "\n"


def _values(law: Law) -> dict[str, str]:
    """Return the recommended numbers, with as many digits as the intervals justify."""
    found = law.recommendation
    assert found, "the law has no recommendation"
    return {
        "almr": f"{float(found.almr.value):.3f}",
        "learning_rate": f"{float(found.learning_rate.value):.3g}",
    }


def _summary(law: Law) -> list[str]:
    """Return the recommendation as lines, starting with the warning of a poor fit."""
    poor = law.recommendation and law.recommendation.poor_fit
    title = "Mixture ratio and learning rate recommended by the law in law.json, in this folder."
    lines = [title, "", *conclusion(law)]
    return [poor, *(line for line in lines if poor not in line)] if poor else lines
