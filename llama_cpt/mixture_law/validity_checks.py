"""Why the data carries no recommendation, or only one that deserves little trust."""

from collections.abc import Mapping

import numpy as np

from llama_cpt.mixture_law.law import FormFit
from llama_cpt.mixture_law.objective import Bound, Objective
from llama_cpt.mixture_law.optimum import OptimumAt
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.surface import Surface
from llama_cpt.mixture_law.table import GROUPS

TOO_LARGE, LARGE = 1 / 2, 1 / 3
"""Held-out error over the spread of the measured losses: refused, or a poor fit."""
NARROW = 0.02
"""An optimum within this part of the grid's width from its end is on the edge."""
UNKNOWN = 0.9
"""An interval over this part of the grid says nothing."""
DECADES = 2.0
"""Nor does one of a carried learning rate that is wider than this."""


def error_reasons(
    forms: tuple[FormFit, ...], noise: Mapping[str, float], home: RunsTable, goal: Objective
) -> list[str]:
    """Losses that differ less between settings than the fit errs, or than seeds differ."""
    reasons = []
    for form in forms:
        spread = float(np.std(np.log(getattr(home, form.group))))
        if not form.chosen or form.held_out is None or _never_binds(form.group, home, goal):
            continue
        if form.held_out.inside > TOO_LARGE * spread:
            reasons.append(
                f"The best form predicts held-out {form.group} losses with an error of "
                f"{form.held_out.inside:.2%}, where the settings differ by {spread:.2%}: "
                "it cannot rank them."
            )
        if noise.get(form.group, 0.0) > TOO_LARGE * spread:
            reasons.append(
                f"Repeated runs differ by {noise[form.group]:.2%} in the {form.group} loss, "
                f"the settings by {spread:.2%}: the noise hides what would be ranked."
            )
    return reasons


def _never_binds(group: str, home: RunsTable, goal: Objective) -> bool:
    """An original loss that is everywhere below its bound need not be ranked."""
    if group != "original" or not isinstance(goal, Bound):
        return False
    return bool((home.original < (1 + goal.forgetting) * home.base_original).all())


def edge_reasons(place: OptimumAt) -> list[str]:
    """An optimum at the end of what was measured may lie anywhere beyond."""
    domain, optima = place.domain, place.optima
    rates = tuple(np.exp(np.array(domain.measured_rate) + place.middle_rate))
    parts = (
        ("ALMR", _part(optima.almr[0], domain.measured_almr), domain.measured_almr),
        ("learning rate", _part(optima.rate[0], domain.measured_rate), rates),
    )
    reasons = []
    for name, part, (low, high) in parts:
        if NARROW <= part <= 1 - NARROW:
            continue
        end, where = (low, "below") if part < NARROW else (high, "above")
        reasons.append(
            f"The best {name} is at the edge of the grid ({end:.3g}): measure {where} it."
        )
    return reasons


def _part(value: float, ends: tuple[float, float]) -> float:
    return float((value - ends[0]) / (ends[1] - ends[0]))


def spread_reasons(place: OptimumAt, widest_rate: float | None = None) -> list[str]:
    """Intervals as wide as the grid, or a rate's wider than ``widest_rate`` in natural logs."""
    domain, reasons = place.domain, []
    low, high = domain.measured_almr
    if place.almr.high - place.almr.low > UNKNOWN * (high - low):
        reasons.append(
            f"The best ALMR may lie anywhere from {place.almr.low:.2f} to {place.almr.high:.2f}: "
            "the data does not say where."
        )
    low, high = domain.measured_rate
    rate = place.learning_rate
    if np.log(rate.high / rate.low) > (widest_rate or UNKNOWN * (high - low)):
        reasons.append(
            f"The best learning rate may lie anywhere from {rate.low:.2g} to {rate.high:.2g}: "
            "the data does not say where."
        )
    return reasons


def bound_reasons(
    surface: Surface, place: OptimumAt, largest: OptimumAt, goal: Objective
) -> list[str]:
    """A bound that the chosen setting breaks, by more than its band.

    Beyond the fitted sizes bands are wide: there it is enough that it was broken so at the
    ``largest`` of them too.
    """
    if not isinstance(goal, Bound):
        return []
    above, surely = _above_bound(surface, place, goal)
    beyond = place.parameters > largest.parameters and _above_bound(surface, largest, goal)[1]
    if not (surely or (above and beyond)):
        return []
    at, base = (place.parameters, place.tokens), surface.base(place.parameters)["original"]
    rates = np.exp(place.domain.rate + place.moved + place.middle_rate)
    losses = surface.predict(place.domain.almr[:, None], rates, *at)["original"].value
    ratio, column = np.unravel_index(np.argmin(losses), losses.shape)
    kept = f"the original within {100 * goal.forgetting:g} %"
    met = losses[ratio, column] <= (1 + goal.forgetting) * base
    return [
        f"{'The best trade does not keep' if met else 'No setting keeps'} {kept}: the least is "
        f"{losses[ratio, column] / base - 1:+.1%}, at ALMR {place.domain.almr[ratio]:.2f} and "
        f"learning rate {rates[column]:.2g}."
    ]


def _above_bound(surface: Surface, place: OptimumAt, goal: Bound) -> tuple[bool, bool]:
    """Whether the chosen setting's original loss is above its bound, and its band too.

    The goal's optimum lies on the bound where one meets it: 0.1 % is no breach.
    """
    bound = (1 + goal.forgetting) * surface.base(place.parameters)["original"]
    almr, rate = float(place.optima.almr[0]), float(place.optima.rate[0])
    rate = np.exp(rate + place.middle_rate)
    found = surface.predict(almr, rate, place.parameters, place.tokens)["original"]
    return bool(found.value > 1.001 * bound), bool(found.low > bound)


def carried_reasons(aimed: OptimumAt) -> list[str]:
    """A target so far away that the carried intervals say nothing."""
    told = f"At {aimed.parameters:g} parameters and {aimed.tokens:g} tokens: "
    return [told + reason for reason in spread_reasons(aimed, DECADES * float(np.log(10)))]


def target_reasons(parameters: float | None, smallest: float) -> list[str]:
    """A target smaller than everything that was fitted."""
    if parameters is None or parameters >= smallest:
        return []
    return [
        f"The target of {parameters:g} parameters is below the smallest fitted size "
        f"({smallest:g}): the law carries upwards only."
    ]


def poor_fit(
    forms: tuple[FormFit, ...], surface: Surface, place: OptimumAt, home: RunsTable, goal: Objective
) -> str | None:
    """A sentence where the chosen fit misses what was measured."""
    for form in forms:
        spread = float(np.std(np.log(getattr(home, form.group))))
        if not form.chosen or form.held_out is None or _never_binds(form.group, home, goal):
            continue
        if form.held_out.inside > LARGE * spread:
            return (
                f"Poor fit: the {form.group} loss of held-out settings is missed by "
                f"{form.held_out.inside:.2%}, where they differ by {spread:.2%}."
            )
    return _better_run(surface, place, home, goal)


def _better_run(surface: Surface, place: OptimumAt, home: RunsTable, goal: Objective) -> str | None:
    """A measured run that is better than the law's optimum, by more than noise."""
    base = surface.base(place.parameters)["original"]
    rate = float(np.exp(place.optima.rate[0] + place.middle_rate))
    predicted = surface.predict(float(place.optima.almr[0]), rate, place.parameters, place.tokens)
    best = goal.evaluate(*(predicted[group].value for group in GROUPS), base)
    allowed = home
    if isinstance(goal, Bound):
        allowed = home.where(home.original <= (1 + goal.forgetting) * base)
    if not len(allowed):
        return None
    measured = goal.evaluate(allowed.additional, allowed.original, base)
    noise = 3 * np.hypot(*(surface.groups[group].noise for group in GROUPS))
    slack = noise if isinstance(goal, Bound) else noise * abs(best)
    index = int(np.argmin(measured))
    if measured[index] > best - slack:
        return None
    return (
        f"Poor fit: the run {allowed.run[index]} is better than anything that the law predicts, "
        "by more than noise."
    )
