"""Tables that do not say everything: what all their runs share needs no number to be fitted."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from llama_cpt.errors import UserError
from llama_cpt.mixture_law.analyse import analyse
from llama_cpt.mixture_law.goal import Bound, Goal
from llama_cpt.mixture_law.law import Law, RatioOnly, Refusal
from llama_cpt.mixture_law.points import Points

SHARED = ("parameters", "tokens", "learning_rate")


def analyse_table(points: Points, *, goal: Goal, next_runs: int, target: Mapping[str, Any]) -> Law:
    """``analyse`` of points that may hold NaN: it gets stand-ins, the law has NaN again.

    A size, a budget or a rate that the table does not say is one for all runs. A base's loss that
    it does not say scales the fit, no more: a bound cannot be asked without that of the original.
    """
    unsaid = {name for name in SHARED if np.isnan(getattr(points, name)).all()}
    for name in unsaid:
        if target.get(f"target_{name}") is not None:
            raise UserError(f"--target-{name}: the table does not say its {name}; fill them in.")
    if isinstance(goal, Bound) and np.isnan(points.base_original).any():
        raise UserError("the base's original loss is not known: ask weights, not a bound.")
    law = analyse(_filled(points), goal=goal, next_runs=next_runs, **target)
    law = replace(law, points=points.where(_places(points, law.points)))
    return _restored(law, unsaid)


def _filled(points: Points) -> Points:
    """With ones for what is shared; bases, run by run of a size, from the losses themselves."""
    values = {name: np.nan_to_num(getattr(points, name), nan=1.0) for name in SHARED}
    for group in ("additional", "original"):
        losses, base = getattr(points, group), getattr(points, f"base_{group}").copy()
        for place in np.flatnonzero(np.isnan(base)):
            alike = points.pair == points.pair[place]
            alike &= values["parameters"] == values["parameters"][place]
            base[place] = np.median(losses[alike])
        values[f"base_{group}"] = base
    return replace(points, **values)


def _places(points: Points, fitted: Points) -> np.ndarray:
    place = {name: number for number, name in enumerate(points.run)}
    return np.array([place[name] for name in fitted.run], int)


def _restored(law: Law, unsaid: set[str]) -> Law:
    found, ridge, alone = law.recommendation, law.ridge, law.ratio_only
    sizes = {name: np.nan for name in ("parameters", "tokens") if name in unsaid}
    if found:
        bases = {"additional": law.points.base_additional, "original": law.points.base_original}
        base = {g: np.nan if np.isnan(bases[g]).any() else value for g, value in found.base.items()}
        found = replace(found, base=base, **sizes)
    if ridge and "parameters" in unsaid:
        ridge = replace(ridge, parameters=np.nan)
    carry = law.carry if not sizes else None
    law = replace(law, recommendation=found, ridge=ridge, carry=carry)
    return _restored_ratio(law, alone, unsaid) if alone else law


def _restored_ratio(law: Law, alone: RatioOnly, unsaid: set[str]) -> Law:
    if np.isnan(law.points.base_original).any():
        told = "The original loss of the base is not known: no critical ratio."
        alone = replace(alone, critical=None, interval=None, finding=told)
    if "learning_rate" in unsaid:
        told = "All runs have one learning rate, which is not told: only the ratio is fitted."
        law = replace(law, refusal=Refusal((told,)))
        alone = replace(alone, learning_rate=np.nan)
    return replace(law, ratio_only=alone)
