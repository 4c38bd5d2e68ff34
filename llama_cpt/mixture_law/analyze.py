"""The whole of it: points and a goal to a law."""

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
from llama_cpt.mixture_law.surface import CARRY, LEVEL_WIDTH, PRIOR, PRIOR_WIDTH, Surface
from llama_cpt.mixture_law.table import GROUPS

DRAWS = 400


def analyze(
    points: RunsTable,
    *,
    goal: Objective,
    target_parameters: float | None = None,
    target_tokens: float | None = None,
    target_base: Mapping[str, float] | None = None,
    next_runs: int = 0,
    seed: int = 0,
) -> Law:
    """Fits every form, chooses by held-out error, recommends or refuses.

    ``target_base`` is the loss of the target's base by group, where it is known. Of several pairs
    the one with the most runs is told in full, the others by their optimum.
    """
    target = Target(target_parameters, target_tokens, target_base)
    names, counts = np.unique(points.pair, return_counts=True)
    laws = {
        str(name): _one_pair(points.where(points.pair == name), goal, target, next_runs, seed)
        for name in names[np.argsort(-counts, kind="stable")]
    }
    if not laws:
        return _one_pair(points, goal, target, next_runs, seed)
    pair, law = next(iter(laws.items()))
    if len(laws) == 1:
        return law
    rows, one_for_all = compare_pairs(laws)
    notes = (f"Told in full: {pair}.", *law.notes)
    return replace(law, pairs=rows, one_for_all=one_for_all, notes=notes)


def _one_pair(points: RunsTable, goal: Objective, target: Target, next_runs: int, seed: int) -> Law:
    points, notes = filter_comparable(points)
    rng = np.random.default_rng(seed)
    law = _empty(points, goal, notes)
    if not len(points):
        return _refused(law, "No run is left to fit.")
    if len(np.unique(points.almr)) == 1:
        return _refused(law, "All runs have one ratio: a mixture law needs at least two.")
    if len(np.unique(points.learning_rate)) == 1:
        return _ratio_law(law, rng)
    return _surface_law(law, target, next_runs, rng)


def _empty(points: RunsTable, goal: Objective, notes: list[str]) -> Law:
    return Law(
        objective=goal,
        runs=points,
        forms=(),
        noise=repeated_noise(points) if len(points) else {},
        recommendation=None,
        refusal=None,
        optimal_rate=None,
        predicted_front=None,
        measured_front=measured_front(points),
        extrapolation=None,
        next_runs=(),
        ratio_only=None,
        pairs=(),
        one_for_all=None,
        notes=tuple(notes),
        surface=None,
    )


def _refused(law: Law, *reasons: str) -> Law:
    """The same law without a recommendation."""
    return replace(law, recommendation=None, refusal=Refusal(reasons))


def _ratio_law(law: Law, rng: np.random.Generator) -> Law:
    kept = at_reference(law.runs)
    points, notes = law.runs.where(kept), law.notes
    if not kept.all():
        notes += (f"Of one size and budget, the commonest: {len(points)} runs.",)
    if len(np.unique(points.almr)) == 1:
        return _refused(law, "No size and budget has two ratios.")
    law = replace(law, ratio_only=fit_ratio(points, law.objective, rng), runs=points, notes=notes)
    peak = points.learning_rate[0]
    rate = f" ({peak:g})" if np.isfinite(peak) else ", which the table does not state"
    reason = f"All runs have one learning rate{rate}: only the ratio is fitted, "
    return _refused(law, f"{reason}and no rate can be recommended.")


def _surface_law(law: Law, target: Target, next_runs: int, rng: np.random.Generator) -> Law:
    points = fill_unstated(law.runs)
    home = points.where(at_reference(points))
    if min(len(np.unique(home.almr)), len(np.unique(home.learning_rate))) == 1:
        reason = "The size and budget with the most runs has one ratio or one learning rate: "
        return _refused(law, f"{reason}add runs that vary it.")
    known = {}
    if target.parameters and target.base:
        known[target.parameters] = target.base
    frame = make_normalization(points, known)
    chance = rng.standard_normal((DRAWS, len(CARRY)))
    fits = {}
    for group in GROUPS:
        width = PRIOR_WIDTH + np.array([LEVEL_WIDTH[group], 0.0, 0.0, 0.0])
        fits[group] = fit_group(points, frame, group, PRIOR + width * chance, rng)
    law = replace(law, forms=tuple(form for forms, _ in fits.values() for form in forms))
    law = replace(law, notes=law.notes + _left_out(law))
    surfaces = {group: surface for group, (_, surface) in fits.items() if surface}
    if len(surfaces) < len(GROUPS):
        return _refused(law, *_too_few(law))
    largest = float(points.parameters.max())
    budget = float(points.tokens[points.parameters == largest].max())
    surface = Surface(
        normalization=frame,
        groups=surfaces,
        parameters=target.parameters or largest,
        tokens=target.tokens or budget,
        largest=largest,
        longest=float(points.tokens.max()),
        draws=DRAWS,
    )
    law = replace(law, notes=law.notes + _prior_levels(points, surface, known))
    law, reasons = recommend(replace(law, surface=surface), points, target, next_runs, chance)
    return _refused(law, *reasons) if reasons else law


def _prior_levels(
    points: RunsTable, surface: Surface, known: Mapping[float, Any]
) -> tuple[str, ...]:
    """That the height of the predicted losses is no finding where the table has one size."""
    told = []
    if len(np.unique(points.parameters)) == 1 and surface.parameters != surface.largest:
        unknown = (
            "" if known else " Nor is its base known (--target-base): that of the table is taken."
        )
        told.append(
            f"The table has one size: that losses at {surface.parameters:g} parameters go as the "
            f"base's is a prior, not a finding.{unknown}"
        )
    if len(np.unique(points.tokens)) == 1 and surface.tokens != surface.longest:
        told.append(
            f"The table has one budget: that losses at {surface.tokens:g} tokens are as high as at "
            f"{surface.longest:g} is a prior, not a finding."
        )
    return tuple(told)


def _left_out(law: Law) -> tuple[str, ...]:
    return tuple(
        f"The form {form.form} is singular at {form.left_out} of the runs, which its fit of the "
        f"{form.group} loss leaves out; it is scored on them all the same."
        for form in law.forms
        if form.left_out
    )


def _too_few(law: Law) -> list[str]:
    """One reason a group that no form could be fitted to."""
    reasons = []
    for group in GROUPS:
        forms = [form for form in law.forms if form.group == group]
        if all(form.refusal for form in forms):
            fewest = forms[-1]
            reasons.append(f"No form could be fitted to the {group} loss: {fewest.refusal}.")
    return reasons


def compare_pairs(laws: dict[str, Law]) -> tuple[tuple[PairOptimum, ...], str]:
    """Each pair's optimum against the first pair's, and a sentence on them all.

    Pairs without a recommendation come last, so that the first has one if any has.
    """
    laws = dict(sorted(laws.items(), key=lambda item: item[1].recommendation is None))
    first = next(iter(laws.values()))
    rows = tuple(_row(pair, law, first) for pair, law in laws.items())
    refused = [row.pair for row in rows if row.refusal]
    known = rows[: len(rows) - len(refused)]
    unknown = f"there is no recommendation for {', '.join(refused)}."
    if len(known) < 2:
        return rows, f"Not known: {unknown}"
    told = _compared(known)
    return rows, f"{told} Of the others it is not known: {unknown}" if refused else told


def _compared(rows: tuple[PairOptimum, ...]) -> str:
    apart = [
        row.pair
        for row in rows[1:]
        if not (_holds_zero(row.almr_difference) and _holds_zero(row.decades_difference))
    ]
    if apart:
        return f"No: the optimum of {', '.join(apart)} is another than that of {rows[0].pair}."
    return "Yes, as far as the intervals tell: none of the differences excludes 0."


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
    """Of independent values: half widths in quadrature."""
    value = one.value - other.value
    down = np.hypot(one.value - one.low, other.high - other.value)
    up = np.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - down, value + up)


def _holds_zero(difference: Interval | None) -> bool:
    return difference is not None and bool(difference.low <= 0 <= difference.high)
