"""Text, table rows and training options that describe a law, for ``fit_law`` and the report."""

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
"""Rows of a table; the first row is the header."""


def format_objective(objective: Objective) -> str:
    """Return the objective as a noun phrase."""
    if isinstance(objective, Bound):
        return (
            f"the lowest additional loss with the original loss at most "
            f"{100 * objective.forgetting:g} % above that of the base model"
        )
    return (
        f"the lowest {objective.additional:g} * additional + {objective.original:g} * original loss"
    )


def conclusion(law: Law) -> list[str]:
    """Return lines with the recommendation and its intervals, or with the reasons for a refusal."""
    if law.recommendation:
        return _recommended(law.recommendation, law.runs.unit)
    # With one learning rate, the critical ratio is still a useful result.
    lines = [law.ratio_only.finding] if law.ratio_only else []
    if law.ratio_only and law.ratio_only.interval:
        low, high = law.ratio_only.interval
        lines.append(f"90 % interval of that ALMR: {low:.3f} to {high:.3f}.")
    reasons = law.refusal.reasons if law.refusal else ()
    return [*lines, "No recommendation:", *(f"- {reason}" for reason in reasons)]


def _recommended(found: Recommendation, unit: str) -> list[str]:
    """Return lines with the ratio, the learning rate, the predicted losses and notes."""
    almr = found.almr
    lines = [
        f"ALMR {almr.value:.3f} (90 % interval {almr.low:.3f} to {almr.high:.3f}), "
        f"peak learning rate {_format_rate(found.learning_rate)}"
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
    """Return a loss and its interval as text."""
    return f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def _format_ratio(interval: Interval) -> str:
    """Return an ALMR with its interval: ``0.585 (0.532 to 0.652)``."""
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _format_rate(interval: Interval) -> str:
    """Return a learning rate and its interval as text."""
    value, low, high = (rate(float(end)) for end in interval)
    return f"{value} ({low} to {high})"


def compare_with_base(interval: Interval, base: float) -> str:
    """Return the change of a loss from ``base``, the base-model loss, in percent; "" for NaN."""
    if np.isnan(base):
        return ""
    return f", {interval.value / base - 1:+.1%} relative to the base model"


def format_optimal_rate(law: Law) -> str:
    """Return the optimal learning rate as an equation in the ratio; "" if it is unknown."""
    if not law.optimal_rate:
        return ""
    slope, intercept = law.optimal_rate.slope, law.optimal_rate.intercept
    return (
        f"Optimal learning rate for each ratio at {amount(law.optimal_rate.parameters)} "
        f"parameters: log(LR) = {intercept.value:.2f} {slope.value:+.2f} * log(ALMR / (1 - ALMR)); "
        f"90 % interval of the slope {slope.low:+.2f} to {slope.high:+.2f}."
    )


def form_rows(law: Law) -> Rows:
    """Return rows with the errors of every form in percent.

    Rows are sorted by group; the selected form is the first of its group.
    """
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
    """Return the held-out errors, the residual and the weight of a form as text."""
    out = fit.held_out
    errors: list[float | None] = [None] * 5
    if out:
        errors = [out.run, out.ratio, out.learning_rate, out.size, out.overall]
    return *(_percent(error) for error in (*errors, fit.residual)), f"{fit.weight:.2f}"


def _percent(share: float | None) -> str:
    """Return a share in percent; "" if it is None or not finite."""
    return "" if share is None or not np.isfinite(share) else f"{share:.2%}"


def _remark(fit: FormFit) -> str:
    """Return as text whether a form is selected, how many runs it excludes, and its refusal."""
    remarks = ["selected"] if fit.chosen else []
    remarks += [f"fitted without {fit.left_out} runs at ALMR 0 or 1"] if fit.left_out else []
    return "; ".join(remarks + ([fit.refusal] if fit.refusal else []))


def next_rows(law: Law) -> Rows:
    """Return rows with the proposed runs, the most informative first."""
    rows: Rows = [("ALMR", "learning rate", "remaining variance of the optimum")]
    rows += [(f"{r.almr:.3f}", rate(r.learning_rate), f"{r.remaining:.0%}") for r in law.next_runs]
    return rows


def extrapolation_rows(law: Law) -> Rows:
    """Return rows with the optimum at each model size."""
    rows: Rows = [("parameters", "tokens", "ALMR", "learning rate", "")]
    for optimum in law.extrapolation.optima if law.extrapolation else ():
        rows.append(
            (
                amount(optimum.parameters),
                amount(optimum.tokens),
                _format_ratio(optimum.almr),
                _format_rate(optimum.learning_rate),
                "extrapolated" if optimum.target else "fitted",
            )
        )
    return rows


def format_exponents(law: Law) -> list[str]:
    """Return a sentence for each scaling exponent of the optimum."""
    return [
        f"Scaling exponent of the {found.of.replace('almr', 'ALMR')} with the number of "
        f"{found.over}: "
        f"{found.power.value:.3f} (90 % interval {found.power.low:.3f} to {found.power.high:.3f}), "
        + (f"a prior: {found.prior}." if found.prior else "fitted.")
        for found in (law.extrapolation.exponents if law.extrapolation else ())
    ]


def pair_rows(law: Law) -> Rows:
    """Return rows with the optimum of each language pair, and its difference from the first row."""
    rows: Rows = [
        (
            "",
            "pair",
            "ALMR",
            "learning rate",
            "ALMR difference from pair 1",
            "log10(LR) difference from pair 1",
            "",
        )
    ]
    for number, pair in enumerate(law.pairs, 1):
        rows.append(
            (
                str(number),
                pair.pair,
                _format_ratio(pair.almr) if pair.almr else "",
                _format_rate(pair.learning_rate) if pair.learning_rate else "",
                _difference(pair.almr_difference, number),
                _difference(pair.decades_difference, number),
                str(pair.refusal or ""),
            )
        )
    return rows


def _difference(interval: Interval | None, number: int) -> str:
    """Return a difference from the first pair as text; "" for the first pair itself."""
    if interval is None or number == 1:
        return ""
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"


def front_rows(front: Pareto) -> Rows:
    """Return rows with the runs on a Pareto front, sorted by ascending original loss."""
    rows: Rows = [("run", "ALMR", "learning rate", "additional loss", "original loss")]
    # Ascending original loss is descending additional loss: the order of the trade-off.
    for index in np.argsort(front.original):
        rows.append(
            (
                str(front.run[index]),
                f"{front.almr[index]:g}",
                rate(float(front.learning_rate[index])),
                f"{front.additional[index]:.4f}",
                f"{front.original[index]:.4f}",
            )
        )
    return rows


def grid_rows(runs: RunsTable) -> Rows:
    """Return rows with the number of runs and the distinct values of their settings."""

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
        ("unit of losses", runs.unit),
    ]


def prediction_rows(
    settings: Sequence[Mapping[str, float]], law: Law, **target: float | None
) -> Rows:
    """Return rows with the predicted losses and their intervals.

    Each of ``settings`` has the keys ``almr`` and ``learning_rate``. ``target`` contains
    ``parameters`` and ``tokens``; None selects the default of ``Law.predict``.
    """
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
"""Template of ``recommended.py``."""


def as_config(law: Law, base: str, folder: str) -> str:
    """Return the text of a Python config: the config file ``base`` with the recommended values.

    The values are the mixture ratio and the peak learning rate. ``folder`` is the folder in which
    the text will be saved.
    """
    # The path is relative, so that both folders can be moved together.
    path = os.path.relpath(Path(base).resolve(), Path(folder).resolve())
    # The summary becomes a docstring, so names in it must not contain quotes or backslashes.
    summary = "\n".join(_summary(law)).replace("\\", "/").replace('"""', "'''")
    return CONFIG.format(
        summary=summary, base=json.dumps(Path(path).as_posix(), ensure_ascii=False), **_values(law)
    )


def as_options(law: Law) -> str:
    """Return one line of options for ``train``, preceded by the recommendation as comments."""
    values = _values(law)
    options = (
        f"--data.almr {values['almr']} --optimizer.peak-learning-rate {values['learning_rate']}"
    )
    return "\n".join([*(f"# {line}".rstrip() for line in _summary(law)), options]) + "\n"


def _values(law: Law) -> dict[str, str]:
    """Return the ratio with 3 decimals and the learning rate with 3 significant digits, as text."""
    # The intervals are too wide to justify more digits.
    found = law.recommendation
    assert found, "the law has no recommendation"
    return {
        "almr": f"{float(found.almr.value):.3f}",
        "learning_rate": f"{float(found.learning_rate.value):.3g}",
    }


def _summary(law: Law) -> list[str]:
    """Return the recommendation as lines; a warning of a poor fit comes first."""
    poor = law.recommendation and law.recommendation.poor_fit
    title = "Mixture ratio and learning rate recommended by the law in law.json in this folder."
    lines = [title, "", *conclusion(law)]
    return [poor, *(line for line in lines if poor not in line)] if poor else lines
