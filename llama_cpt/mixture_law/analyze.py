"""The analysis of a table of runs: fits, selection, recommendation and comparison of pairs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from llama_cpt.mixture_law.intervals import Interval
from llama_cpt.mixture_law.law import Law, PairOptimum, Refusal
from llama_cpt.mixture_law.normalization import at_reference, make_normalization
from llama_cpt.mixture_law.objective import Objective
from llama_cpt.mixture_law.optimum import measured_front
from llama_cpt.mixture_law.ratio_only import fit_ratio
from llama_cpt.mixture_law.recommend import Target, recommend
from llama_cpt.mixture_law.runs_table import (
    RunsTable,
    fill_unstated,
    filter_comparable,
    repeated_noise,
)
from llama_cpt.mixture_law.selection import fit_group
from llama_cpt.mixture_law.surface import LEVEL_WIDTH, POWERS, PRIOR, PRIOR_WIDTH, Surface
from llama_cpt.mixture_law.table import GROUPS

DRAWS = 400
"""Number of bootstrap draws."""


def analyze(
    runs: RunsTable,
    *,
    objective: Objective,
    target_parameters: float | None = None,
    target_tokens: float | None = None,
    target_base: Mapping[str, float] | None = None,
    next_runs: int = 0,
    seed: int = 0,
) -> Law:
    """Return the law of a table of runs: a recommendation, or a refusal with the reasons.

    Every form is fitted and the one with the smallest held-out error is selected. ``target_base``
    is the loss of the target's base by group, if known. For several language pairs, the law is that
    of the pair with the most runs, with a comparison of the optima of all pairs.
    """
    target = Target(target_parameters, target_tokens, target_base)
    names, counts = np.unique(runs.pair, return_counts=True)
    laws = {
        str(name): _analyze_pair(runs.where(runs.pair == name), objective, target, next_runs, seed)
        # Most runs first; the stable sort keeps ties in alphabetical order.
        for name in names[np.argsort(-counts, kind="stable")]
    }
    if not laws:
        return _analyze_pair(runs, objective, target, next_runs, seed)
    pair, law = next(iter(laws.items()))
    if len(laws) == 1:
        return law
    rows, one_for_all = compare_pairs(laws)
    notes = (f"Detailed results are for the pair {pair}.", *law.notes)
    return replace(law, pairs=rows, one_for_all=one_for_all, notes=notes)


def _analyze_pair(
    runs: RunsTable, objective: Objective, target: Target, next_runs: int, seed: int
) -> Law:
    """Return the law of one language pair."""
    runs, notes = filter_comparable(runs)
    rng = np.random.default_rng(seed)
    law = _empty(runs, objective, notes)
    if not len(runs):
        return _refused(law, "No run is left to fit.")
    if len(np.unique(runs.almr)) == 1:
        return _refused(law, "All runs have one ratio: a mixture law needs at least two.")
    if len(np.unique(runs.learning_rate)) == 1:
        return _ratio_law(law, rng)
    return _surface_law(law, target, next_runs, rng)


def _empty(runs: RunsTable, objective: Objective, notes: list[str]) -> Law:
    """Return a law without any results."""
    return Law(
        objective=objective,
        runs=runs,
        forms=(),
        noise=repeated_noise(runs) if len(runs) else {},
        recommendation=None,
        refusal=None,
        optimal_rate=None,
        predicted_front=None,
        measured_front=measured_front(runs),
        extrapolation=None,
        next_runs=(),
        ratio_only=None,
        pairs=(),
        one_for_all=None,
        notes=tuple(notes),
        surface=None,
    )


def _refused(law: Law, *reasons: str) -> Law:
    """Return the law with a refusal in place of the recommendation."""
    return replace(law, recommendation=None, refusal=Refusal(reasons))


def _ratio_law(law: Law, rng: np.random.Generator) -> Law:
    """Return the law of the ratio alone, at the size and budget with the most runs."""
    kept = at_reference(law.runs)
    runs, notes = law.runs.where(kept), law.notes
    if not kept.all():
        notes += (f"The fit uses the {len(runs)} runs of the most frequent size and budget.",)
    if len(np.unique(runs.almr)) == 1:
        return _refused(law, "No size and budget has two ratios.")
    law = replace(law, ratio_only=fit_ratio(runs, law.objective, rng), runs=runs, notes=notes)
    peak = runs.learning_rate[0]
    rate = f" ({peak:g})" if np.isfinite(peak) else ", which the table does not state"
    reason = f"All runs have one learning rate{rate}: only the ratio is fitted, "
    return _refused(law, f"{reason}and no rate can be recommended.")


def _surface_law(law: Law, target: Target, next_runs: int, rng: np.random.Generator) -> Law:
    """Return the law over ratio, learning rate, size and tokens."""
    runs = fill_unstated(law.runs)
    reference = runs.where(at_reference(runs))
    if min(len(np.unique(reference.almr)), len(np.unique(reference.learning_rate))) == 1:
        reason = "The size and budget with the most runs has one ratio or one learning rate: "
        return _refused(law, f"{reason}add runs that vary it.")
    known = {}
    if target.parameters and target.base:
        # A known base fixes the level of the target's losses, which otherwise extrapolates.
        known[target.parameters] = target.base
    normalization = make_normalization(runs, known)
    # The same deviates for both groups and for the optimum: the powers of a draw belong together.
    deviates = rng.standard_normal((DRAWS, len(POWERS)))
    fits = {}
    for group in GROUPS:
        width = PRIOR_WIDTH + np.array([LEVEL_WIDTH[group], 0.0, 0.0, 0.0])
        fits[group] = fit_group(runs, normalization, group, PRIOR + width * deviates, rng)
    law = replace(law, forms=tuple(form for forms, _ in fits.values() for form in forms))
    law = replace(law, notes=law.notes + _left_out(law))
    surfaces = {group: surface for group, (_, surface) in fits.items() if surface}
    if len(surfaces) < len(GROUPS):
        return _refused(law, *_too_few(law))
    largest = float(runs.parameters.max())
    # Without a target, the largest fitted model at its longest budget.
    budget = float(runs.tokens[runs.parameters == largest].max())
    surface = Surface(
        normalization=normalization,
        groups=surfaces,
        parameters=target.parameters or largest,
        tokens=target.tokens or budget,
        largest=largest,
        longest=float(runs.tokens.max()),
        draws=DRAWS,
    )
    law = replace(law, notes=law.notes + _prior_levels(runs, surface, known))
    law, reasons = recommend(replace(law, surface=surface), runs, target, next_runs, deviates)
    return _refused(law, *reasons) if reasons else law


def _prior_levels(runs: RunsTable, surface: Surface, known: Mapping[float, Any]) -> tuple[str, ...]:
    """Return notes if predicted losses depend on a prior for lack of a second size or budget."""
    notes = []
    if len(np.unique(runs.parameters)) == 1 and surface.parameters != surface.largest:
        unknown = (
            ""
            if known
            else " The base loss of that size is unknown (see --target-base): that of the table's "
            "size is used."
        )
        notes.append(
            f"The table has one size: that losses at {surface.parameters:g} parameters are "
            f"proportional to those of the base is a prior, not a fitted result.{unknown}"
        )
    if len(np.unique(runs.tokens)) == 1 and surface.tokens != surface.longest:
        notes.append(
            f"The table has one budget: that losses at {surface.tokens:g} tokens are as high as at "
            f"{surface.longest:g} is a prior, not a fitted result."
        )
    return tuple(notes)


def _left_out(law: Law) -> tuple[str, ...]:
    """Return a note for each form that is undefined at some of the runs."""
    return tuple(
        f"Form {form.form} is singular at {form.left_out} of the runs: its fit of the {form.group} "
        f"loss leaves them out, and its held-out error includes them."
        for form in law.forms
        if form.left_out
    )


def _too_few(law: Law) -> list[str]:
    """Return a reason for each group to which no form could be fitted."""
    reasons = []
    for group in GROUPS:
        forms = [form for form in law.forms if form.group == group]
        if all(form.refusal for form in forms):
            fewest = forms[-1]
            reasons.append(f"No form could be fitted to the {group} loss: {fewest.refusal}.")
    return reasons


def compare_pairs(laws: dict[str, Law]) -> tuple[tuple[PairOptimum, ...], str]:
    """Return each pair's optimum and its difference from the first's, and a summary sentence.

    Pairs without a recommendation come last, so that the first has one if any has.
    """
    laws = dict(sorted(laws.items(), key=lambda item: item[1].recommendation is None))
    first = next(iter(laws.values()))
    rows = tuple(_row(pair, law, first) for pair, law in laws.items())
    refused = [row.pair for row in rows if row.refusal]
    known = rows[: len(rows) - len(refused)]
    unknown = f"there is no recommendation for {', '.join(refused)}."
    if len(known) < 2:
        return rows, f"Unknown: {unknown}"
    summary = _compared(known)
    return rows, f"{summary} For the others it is unknown: {unknown}" if refused else summary


def _compared(rows: tuple[PairOptimum, ...]) -> str:
    different = [
        row.pair
        for row in rows[1:]
        if not (_contains_zero(row.almr_difference) and _contains_zero(row.decades_difference))
    ]
    if different:
        return f"No: the optimum of {', '.join(different)} differs from that of {rows[0].pair}."
    return "Yes, within the intervals: every 90 % interval of a difference contains 0."


def _row(pair: str, law: Law, first: Law) -> PairOptimum:
    here, there = law.recommendation, first.recommendation
    if here is None:
        return PairOptimum(pair, None, None, None, None, law.refusal)
    rate = Interval(*np.log10(here.learning_rate))
    return PairOptimum(
        pair=pair,
        almr=here.almr,
        learning_rate=here.learning_rate,
        almr_difference=_difference(here.almr, there.almr) if there else None,
        decades_difference=(
            _difference(rate, Interval(*np.log10(there.learning_rate))) if there else None
        ),
        refusal=None,
    )


def _difference(one: Interval, other: Interval) -> Interval:
    """Return the difference of independent values: half widths add in quadrature."""
    value = one.value - other.value
    down = np.hypot(one.value - one.low, other.high - other.value)
    up = np.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - down, value + up)


def _contains_zero(difference: Interval | None) -> bool:
    return difference is not None and bool(difference.low <= 0 <= difference.high)
