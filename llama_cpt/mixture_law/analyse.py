"""The whole of it: points and a goal to a law."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from llama_cpt.mixture_law.comparable import comparable, repeated_noise
from llama_cpt.mixture_law.doubts import edge_reasons, error_reasons, poor_fit, spread_reasons
from llama_cpt.mixture_law.goal import Goal
from llama_cpt.mixture_law.group_fit import fit_group
from llama_cpt.mixture_law.law import Law, Recommendation, Refusal
from llama_cpt.mixture_law.next_runs import choose_next_runs
from llama_cpt.mixture_law.pairs import compare_pairs
from llama_cpt.mixture_law.places import find_place
from llama_cpt.mixture_law.points import GROUPS, Points
from llama_cpt.mixture_law.ratio_only import fit_ratio
from llama_cpt.mixture_law.recommend import make_ridge, measured_front, predicted_front
from llama_cpt.mixture_law.settings import make_frame
from llama_cpt.mixture_law.surface import Surface
from llama_cpt.mixture_law.transfer import (
    FAR,
    by_size,
    by_tokens,
    carried,
    make_carry,
    widening,
)

TOLERANCE = np.array([0.05, 0.1 * np.log(10)])
"""What counts as a difference: ALMR, and a tenth of a decade of the rate."""


@dataclass(frozen=True)
class Target:
    """What the choice is for; None where it is what was measured."""

    parameters: float | None
    tokens: float | None
    base: Mapping[str, float] | None


def analyse(
    points: Points,
    *,
    goal: Goal,
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
    pair, law = next(iter(laws.items()))
    if len(laws) == 1:
        return law
    rows, one_for_all = compare_pairs(laws)
    notes = (f"Told in full: {pair}.", *law.notes)
    return replace(law, pairs=rows, one_for_all=one_for_all, notes=notes)


def _one_pair(points: Points, goal: Goal, target: Target, next_runs: int, seed: int) -> Law:
    points, notes = comparable(points)
    rng = np.random.default_rng(seed)
    law = _empty(points, goal, notes)
    if not len(points):
        return _refused(law, "No run is left to fit.")
    if len(np.unique(points.almr)) == 1:
        return _refused(law, "All runs have one ratio: a mixture law needs at least two.")
    if len(np.unique(points.learning_rate)) == 1:
        return _ratio_law(law, rng)
    return _surface_law(law, target, next_runs, rng)


def _empty(points: Points, goal: Goal, notes: list[str]) -> Law:
    return Law(
        goal=goal,
        points=points,
        forms=(),
        noise=repeated_noise(points) if len(points) else {},
        recommendation=None,
        refusal=None,
        ridge=None,
        predicted_front=None,
        measured_front=measured_front(points),
        carry=None,
        next_runs=(),
        ratio_only=None,
        pairs=(),
        one_for_all=None,
        notes=tuple(notes),
        surface=None,
    )


def _refused(law: Law, *reasons: str) -> Law:
    return replace(law, recommendation=None, refusal=Refusal(reasons))


def _ratio_law(law: Law, rng: np.random.Generator) -> Law:
    points = law.points
    frame = make_frame(points, {})
    kept = (points.parameters == frame.home_parameters) & (points.tokens == frame.home_tokens)
    points = points.where(kept)
    notes = law.notes
    if not kept.all():
        notes += (f"Of one size and budget, the commonest: {len(points)} runs.",)
    if len(np.unique(points.almr)) == 1:
        return _refused(law, "No size and budget has two ratios.")
    law = replace(law, ratio_only=fit_ratio(points, law.goal, rng), points=points, notes=notes)
    rate = f"All runs have one learning rate ({points.learning_rate[0]:g})"
    return _refused(law, f"{rate}: only the ratio is fitted, and no rate can be recommended.")


def _surface_law(law: Law, target: Target, next_runs: int, rng: np.random.Generator) -> Law:
    points = law.points
    known = {}
    if target.parameters and target.base:
        known[target.parameters] = target.base
    frame = make_frame(points, known)
    fits = {group: fit_group(points, frame, group, rng) for group in GROUPS}
    law = replace(law, forms=tuple(form for forms, _ in fits.values() for form in forms))
    law = replace(law, notes=law.notes + _left_out(law))
    surfaces = {group: surface for group, (_, surface) in fits.items() if surface}
    if len(surfaces) < len(GROUPS):
        return _refused(law, *_too_few(law))
    largest = float(points.parameters.max())
    budget = float(points.tokens[points.parameters == largest].max())
    place_of = (target.parameters or largest, target.tokens or budget)
    surface = Surface(frame, surfaces, *place_of, largest)
    return _recommend(replace(law, surface=surface), target, next_runs, rng)


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
            fewest = min(forms, key=lambda form: len(form.parameters))
            reasons.append(f"No form could be fitted to the {group} loss: {fewest.refusal}.")
    return reasons


def _recommend(law: Law, target: Target, next_runs: int, rng: np.random.Generator) -> Law:
    surface, points, goal = law.surface, law.points, law.goal
    assert surface
    frame = surface.frame
    largest = surface.largest
    sizes = np.unique(points.parameters)
    at_home = points.parameters == frame.home_parameters
    budgets = np.unique(points.tokens[at_home])
    find = lambda parameters, tokens: find_place(  # noqa: E731
        surface, points, goal, float(parameters), float(tokens)
    )
    home = find(frame.home_parameters, frame.home_tokens)
    by_budget = [
        home if d == frame.home_tokens else find(frame.home_parameters, d) for d in budgets
    ]
    by_sizes = [home if n == frame.home_parameters else find(n, frame.home_tokens) for n in sizes]
    size_powers, token_powers = by_size(by_sizes, rng), by_tokens(by_budget, rng)
    start = by_sizes[-1]
    goal_optimum = carried(
        start, size_powers, token_powers, surface.parameters, surface.tokens, largest
    )
    cells = points.where(at_home & (points.tokens == frame.home_tokens))
    reasons = [
        *error_reasons(law.forms, law.noise, cells),
        *edge_reasons(home),
        *spread_reasons(home),
        *_target_reasons(target, sizes),
    ]
    carry = make_carry(
        by_sizes,
        size_powers,
        token_powers,
        goal_optimum if target.parameters or target.tokens else None,
        largest,
    )
    doubt = poor_fit(law.forms, surface, home, cells, goal)
    recommendation = Recommendation(
        almr=goal_optimum.almr,
        learning_rate=goal_optimum.learning_rate,
        losses=surface.predict(goal_optimum.almr.value, goal_optimum.learning_rate.value),
        base=surface.base(),
        parameters=surface.parameters,
        tokens=surface.tokens,
        poor_fit=doubt,
        extrapolation=_extrapolation(surface.parameters / largest),
    )
    optima = np.stack([home.optima.almr, home.optima.rate], axis=1)[1:] / TOLERANCE
    law = replace(
        law,
        recommendation=recommendation,
        ridge=make_ridge(home),
        predicted_front=predicted_front(surface, home),
        carry=carry,
        next_runs=choose_next_runs(surface, home.domain, points, optima, next_runs),
    )
    return _refused(law, *reasons) if reasons else law


def _target_reasons(target: Target, sizes: np.ndarray) -> list[str]:
    if target.parameters is None or target.parameters >= sizes[0]:
        return []
    return [
        f"The target of {target.parameters:g} parameters is below the smallest fitted size "
        f"({sizes[0]:g}): the law carries upwards only."
    ]


def _extrapolation(factor: float) -> str | None:
    if factor <= FAR:
        return None
    return (
        f"Extrapolation: {factor:.0f} times the largest fitted size; beyond {FAR:g} times, "
        f"intervals are widened by log10 of that, here {widening(factor):.2f}."
    )
