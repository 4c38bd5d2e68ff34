"""Analysis of a table of runs: fits of a law, recommendation, and comparison of language pairs."""

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
    """Fit a law to a table of runs; it contains a recommendation or the reasons for having none.

    All forms in ``forms.py`` are fitted to the losses of each language group, and the form with the
    smallest held-out error is selected for each group. The recommendation is for a model with
    ``target_parameters`` parameters that is trained on ``target_tokens`` tokens. The defaults are
    the largest model size in the table and the largest token budget of this size. ``target_base``
    contains the losses of the target's base model by language group; None means that they are
    unknown. ``next_runs`` is the number of runs to propose. ``seed`` is the seed of the bootstrap.
    If the table has several language pairs, the law describes the pair with the most runs and
    contains a comparison of the optima of all pairs.
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
    notes = (f"Detailed results are for the language pair {pair}.", *law.notes)
    return replace(law, pairs=rows, one_for_all=one_for_all, notes=notes)


def _analyze_pair(
    runs: RunsTable, objective: Objective, target: Target, next_runs: int, seed: int
) -> Law:
    """Return the law of one language pair."""
    runs, notes = filter_comparable(runs)
    rng = np.random.default_rng(seed)
    law = _empty(runs, objective, notes)
    if not len(runs):
        return _refused(law, "No comparable runs remain to be fitted.")
    if len(np.unique(runs.almr)) == 1:
        return _refused(law, "All runs have the same ratio; a mixture law needs at least two.")
    if len(np.unique(runs.learning_rate)) == 1:
        return _ratio_law(law, rng)
    return _surface_law(law, target, next_runs, rng)


def _empty(runs: RunsTable, objective: Objective, notes: list[str]) -> Law:
    """Return a law without fits: only the runs, their noise, their Pareto front and the notes."""
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
    """Return the law without a recommendation and with a refusal for the given reasons."""
    return replace(law, recommendation=None, refusal=Refusal(reasons))


def _ratio_law(law: Law, rng: np.random.Generator) -> Law:
    """Return the law of runs with one learning rate: losses as functions of the ratio only.

    The law is fitted to the runs at the size and budget with the most runs.
    """
    # This law models neither size nor tokens, so only runs of one size and budget are comparable.
    kept = at_reference(law.runs)
    runs, notes = law.runs.where(kept), law.notes
    if not kept.all():
        notes += (f"The fit uses the {len(runs)} runs of the most frequent size and budget.",)
    if len(np.unique(runs.almr)) == 1:
        return _refused(law, "The size and budget with the most runs has only one ratio.")
    law = replace(law, ratio_only=fit_ratio(runs, law.objective, rng), runs=runs, notes=notes)
    peak = runs.learning_rate[0]
    rate = f" ({peak:g})" if np.isfinite(peak) else ", which the table does not state"
    reason = f"All runs have one learning rate{rate}. Only the ratio is fitted, "
    return _refused(law, f"{reason}and no learning rate can be recommended.")


def _surface_law(law: Law, target: Target, next_runs: int, rng: np.random.Generator) -> Law:
    """Return a law with losses as functions of ratio, learning rate, model size and tokens."""
    runs = fill_unstated(law.runs)
    reference = runs.where(at_reference(runs))
    if min(len(np.unique(reference.almr)), len(np.unique(reference.learning_rate))) == 1:
        reason = "The size and budget with the most runs has one ratio or one learning rate; "
        return _refused(law, f"{reason}add runs with at least two of each.")
    known = {}
    if target.parameters and target.base:
        # If the losses of the target's base model are known, they set the level of the predicted
        # losses. Otherwise, the level is extrapolated.
        known[target.parameters] = target.base
    normalization = make_normalization(runs, known)
    # Both groups and the optimum use the same deviates, so that all results of a bootstrap draw
    # have the same exponents.
    deviates = rng.standard_normal((DRAWS, len(POWERS)))
    fits = {}
    for group in GROUPS:
        width = PRIOR_WIDTH + np.array([LEVEL_WIDTH[group], 0.0, 0.0, 0.0])
        fits[group] = fit_group(runs, normalization, group, PRIOR + width * deviates, rng)
    law = replace(law, forms=tuple(form for forms, _ in fits.values() for form in forms))
    law = replace(law, notes=law.notes + _left_out(law))
    surfaces = {group: surface for group, (_, surface) in fits.items() if surface}
    # The objective needs the losses of both groups.
    if len(surfaces) < len(GROUPS):
        return _refused(law, *_too_few(law))
    largest = float(runs.parameters.max())
    # The default target is the largest fitted size at its largest token budget.
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
    """Return a note for each scaling exponent of the predicted losses that comes from a prior.

    The exponent of the model size comes from a prior if the table has only one size. The exponent
    of the tokens comes from a prior if the table has only one token budget.
    """
    notes = []
    if len(np.unique(runs.parameters)) == 1 and surface.parameters != surface.largest:
        unknown = (
            ""
            if known
            else " The base-model loss at that size is unknown (see --target-base), so that of the "
            "table's size is used."
        )
        notes.append(
            f"The table has one model size. Losses at {surface.parameters:g} parameters are "
            f"assumed to be proportional to those of the base model; this is a prior, not a "
            f"fitted result.{unknown}"
        )
    if len(np.unique(runs.tokens)) == 1 and surface.tokens != surface.longest:
        notes.append(
            f"The table has one token budget. Losses at {surface.tokens:g} tokens are assumed to "
            f"equal those at {surface.longest:g} tokens; this is a prior, not a fitted result."
        )
    return tuple(notes)


def _left_out(law: Law) -> tuple[str, ...]:
    """Return a note for each form that is undefined at the mixture ratio of some runs."""
    return tuple(
        f"Form {form.form} is singular at {form.left_out} of the runs. Its fit to the {form.group} "
        f"loss excludes them, and its held-out error includes them."
        for form in law.forms
        if form.left_out
    )


def _too_few(law: Law) -> list[str]:
    """Return one sentence for each language group to which no form could be fitted."""
    reasons = []
    for group in GROUPS:
        forms = [form for form in law.forms if form.group == group]
        if all(form.refusal for form in forms):
            # The last form has the fewest parameters, so its reason is the most informative.
            fewest = forms[-1]
            reasons.append(f"No form could be fitted to the {group} loss: {fewest.refusal}.")
    return reasons


def compare_pairs(laws: dict[str, Law]) -> tuple[tuple[PairOptimum, ...], str]:
    """Return the optimum of each language pair, and a sentence on whether all optima are equal.

    The sentence compares each optimum with that of the first pair. Pairs without a recommended
    optimum come last, so that the first pair has one.
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
    return rows, f"{summary} The other optima are unknown: {unknown}" if refused else summary


def _compared(rows: tuple[PairOptimum, ...]) -> str:
    """Return a sentence on whether the optima of pairs with a recommendation differ."""
    different = [
        row.pair
        for row in rows[1:]
        if not (_contains_zero(row.almr_difference) and _contains_zero(row.decades_difference))
    ]
    if different:
        return f"No: the optimum of {', '.join(different)} differs from that of {rows[0].pair}."
    return "Yes, as far as the intervals show: all 90 % intervals of a difference contain 0."


def _row(pair: str, law: Law, first: Law) -> PairOptimum:
    """Return the optimum of a language pair, and its difference from that of the law ``first``."""
    here, there = law.recommendation, first.recommendation
    if here is None:
        return PairOptimum(pair, None, None, None, None, law.refusal)
    return PairOptimum(
        pair=pair,
        almr=here.almr,
        learning_rate=here.learning_rate,
        almr_difference=_difference(here.almr, there.almr) if there else None,
        decades_difference=(
            _difference(_log10(here.learning_rate), _log10(there.learning_rate)) if there else None
        ),
        refusal=None,
    )


def _log10(interval: Interval) -> Interval:
    """Return the base-10 logarithms of an estimate and of the ends of its interval."""
    return Interval(*(np.log10(end) for end in interval))


def _difference(one: Interval, other: Interval) -> Interval:
    """Return the difference of two independent estimates.

    The half-widths of their intervals add in quadrature.
    """
    # Two language pairs share no runs, so the errors of their optima are independent.
    value = one.value - other.value
    down = np.hypot(one.value - one.low, other.high - other.value)
    up = np.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, value - down, value + up)


def _contains_zero(difference: Interval | None) -> bool:
    """Return whether the interval contains 0; False for None."""
    return difference is not None and bool(difference.low <= 0 <= difference.high)
