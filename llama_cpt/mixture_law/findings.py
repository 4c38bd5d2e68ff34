"""A law in words and rows: the same for the terminal and for ``report.md``."""

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


def format_objective(goal: Objective) -> str:
    """What was asked."""
    if isinstance(goal, Bound):
        return (
            f"the lowest additional loss with the original at most "
            f"{100 * goal.forgetting:g} % above its base"
        )
    return f"the lowest {goal.additional:g} * additional + {goal.original:g} * original loss"


def conclusion(law: Law) -> list[str]:
    """The recommendation with its intervals, or the refusal with its reasons; a line each."""
    if law.recommendation:
        return _recommended(law.recommendation, law.runs.unit)
    told = [law.ratio_only.finding] if law.ratio_only else []
    if law.ratio_only and law.ratio_only.interval:
        low, high = law.ratio_only.interval
        told.append(f"90 % interval of that ALMR: {low:.3f} to {high:.3f}.")
    reasons = law.refusal.reasons if law.refusal else ()
    return [*told, "No recommendation:", *(f"- {reason}" for reason in reasons)]


def _recommended(found: Recommendation, unit: str) -> list[str]:
    almr, lr = found.almr, found.learning_rate
    lines = [
        f"ALMR {almr.value:.3f} (90 %: {almr.low:.3f} to {almr.high:.3f}), "
        f"peak learning rate {rate(lr.value)} ({rate(lr.low)} to {rate(lr.high)})"
    ]
    if not np.isnan([found.parameters, found.tokens]).all():
        lines[0] += f"; {amount(found.parameters)} parameters, {amount(found.tokens)} tokens"
    lines += [
        f"predicted {group} loss {format_loss(found.losses[group])} {unit}"
        + compare_with_base(found.losses[group], found.base.get(group, np.nan))
        for group in GROUPS
    ]
    return lines + [f"note: {told}" for told in (found.poor_fit, found.extrapolation) if told]


def format_loss(band: Interval) -> str:
    """A loss and its interval."""
    return f"{band.value:.4f} ({band.low:.4f} to {band.high:.4f})"


def compare_with_base(band: Interval, base: float) -> str:
    """A loss beside that of the base, where it is known."""
    return "" if np.isnan(base) else f", {band.value / base - 1:+.1%} against its base"


def format_optimal_rate(law: Law) -> str:
    """The ALMR-LR correlation line; empty without one."""
    if not law.optimal_rate:
        return ""
    slope, intercept = law.optimal_rate.slope, law.optimal_rate.intercept
    return (
        f"Best rate for each ratio at {amount(law.optimal_rate.parameters)} parameters: "
        f"log(LR) = {intercept.value:.2f} {slope.value:+.2f} * log(ALMR / (1 - ALMR)), slope "
        f"{slope.low:+.2f} to {slope.high:+.2f} (90 %)."
    )


def form_rows(law: Law) -> Rows:
    """Every form's held-out errors in percent, by group, the chosen one marked."""
    rows: Rows = [
        ("group", "form", "held out: run", "ratio", "rate", "size", "all", "residual", "weight", "")
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
    told = ["chosen"] if fit.chosen else []
    told += [f"{fit.left_out} runs at ALMR 0 or 1 left out of its fit"] if fit.left_out else []
    return "; ".join(told + ([fit.refusal] if fit.refusal else []))


def next_rows(law: Law) -> Rows:
    """The runs that would narrow the recommendation most, in order."""
    rows: Rows = [("ALMR", "learning rate", "variance of the optimum left")]
    rows += [(f"{r.almr:.3f}", rate(r.learning_rate), f"{r.remaining:.0%}") for r in law.next_runs]
    return rows


def extrapolation_rows(law: Law) -> Rows:
    """The optimum by size, and the powers that carry it."""
    rows: Rows = [("parameters", "tokens", "ALMR", "learning rate", "")]
    for optimum in law.extrapolation.optima if law.extrapolation else ():
        almr, lr = optimum.almr, optimum.learning_rate
        rows.append(
            (
                amount(optimum.parameters),
                amount(optimum.tokens),
                f"{almr.value:.3f} ({almr.low:.3f} to {almr.high:.3f})",
                f"{rate(lr.value)} ({rate(lr.low)} to {rate(lr.high)})",
                "carried" if optimum.target else "fitted",
            )
        )
    return rows


def format_exponents(law: Law) -> list[str]:
    """How the optimum moves, a sentence each."""
    return [
        f"{found.of.replace('almr', 'ALMR')} goes as {found.over}^{found.power.value:.3f} "
        f"({found.power.low:.3f} to {found.power.high:.3f}), "
        + (f"a prior: {found.prior}." if found.prior else "fitted.")
        for found in (law.extrapolation.exponents if law.extrapolation else ())
    ]


def pair_rows(law: Law) -> Rows:
    """Each pair's optimum and its difference from the first's."""
    rows: Rows = [("", "pair", "ALMR", "learning rate", "ALMR - first's", "decades of rate", "")]
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


def _difference(band: Interval | None, number: int) -> str:
    if band is None or number == 1:
        return ""
    return f"{band.value:+.3f} ({band.low:+.3f} to {band.high:+.3f})"


def front_rows(front: Pareto) -> Rows:
    """The runs of which none is better in both losses."""
    rows: Rows = [("run", "ALMR", "learning rate", "additional loss", "original loss")]
    for place in np.argsort(front.original):
        rows.append(
            (
                str(front.run[place]),
                f"{front.almr[place]:g}",
                rate(front.learning_rate[place]),
                f"{front.additional[place]:.4f}",
                f"{front.original[place]:.4f}",
            )
        )
    return rows


def grid_rows(points: RunsTable) -> Rows:
    """What the table varies."""

    def told(values: np.ndarray, show: Callable[[Any], str]) -> str:
        return ", ".join(show(value) for value in np.unique(values))

    return [
        ("", ""),
        ("runs", str(len(points))),
        ("ALMR", told(points.almr, lambda v: f"{v:g}")),
        ("learning rate", told(points.learning_rate, rate)),
        ("parameters", told(points.parameters, amount)),
        ("tokens", told(points.tokens, amount)),
        ("schedule", told(points.schedule, str)),
        ("pair", told(points.pair, str)),
        ("losses in", points.unit),
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def aligned_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal; empty ones are left out."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    )


def prediction_rows(
    settings: Sequence[Mapping[str, float]], law: Law, **place: float | None
) -> Rows:
    """Losses at asked settings with their bands; ``place`` is size and tokens."""
    rows: Rows = [("ALMR", "learning rate", *(f"{g} loss, {law.runs.unit}" for g in GROUPS))]
    for asked in settings:
        found = law.predict(asked["almr"], asked["learning_rate"], **place)
        losses = (format_loss(found[group]) for group in GROUPS)
        rows.append((f"{asked['almr']:g}", rate(asked["learning_rate"]), *losses))
    return rows


CONFIG = '''"""{told}
"""

from dataclasses import replace
from pathlib import Path

from llama_cpt.config.loading import load

base = load(str(Path(__file__).parent / {base}))
config = replace(
    base,
    data=replace(base.data, almr={almr}),
    optimizer=replace(base.optimizer, peak_learning_rate={learning_rate}),
)
'''


def as_config(law: Law, base: str, folder: str) -> str:
    """A Python config in ``folder``: that of ``base`` with the recommended ratio and rate."""
    path = os.path.relpath(Path(base).resolve(), Path(folder).resolve())
    told = "\n".join(_told(law)).replace("\\", "/").replace('"""', "'''")
    return CONFIG.format(
        told=told, base=json.dumps(Path(path).as_posix(), ensure_ascii=False), **_values(law)
    )


def as_options(law: Law) -> str:
    """Options of ``train``, beneath what they come from as comments."""
    values = _values(law)
    options = (
        f"--data.almr {values['almr']} --optimizer.peak-learning-rate {values['learning_rate']}"
    )
    return "\n".join([*(f"# {line}".rstrip() for line in _told(law)), options]) + "\n"


def _values(law: Law) -> dict[str, str]:
    """As many digits as the intervals deserve."""
    found = law.recommendation
    assert found, "a refusal has no config"
    return {
        "almr": f"{float(found.almr.value):.3f}",
        "learning_rate": f"{float(found.learning_rate.value):.3g}",
    }


def _told(law: Law) -> list[str]:
    poor = law.recommendation and law.recommendation.poor_fit
    told = ["Ratio and rate as the law beside this file (law.json) recommends them.", "",
            *conclusion(law)]  # fmt: skip
    return [poor, *(line for line in told if poor not in line)] if poor else told
