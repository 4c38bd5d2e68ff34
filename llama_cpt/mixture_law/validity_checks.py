"""Checks of whether the data supports a recommendation; each failed one is a sentence."""

from collections.abc import Mapping

import numpy as np

from llama_cpt.mixture_law.law import FormFit
from llama_cpt.mixture_law.objective import Bound, Objective
from llama_cpt.mixture_law.optimum import OptimumAt
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.surface import Surface
from llama_cpt.mixture_law.table import GROUPS

TOO_LARGE, LARGE = 1 / 2, 1 / 3
"""Held-out error over the spread of the measured losses: the limits of a refusal and a poor fit."""
EDGE = 0.02
"""An optimum within this share of the grid's width from its end is on the edge."""
MAX_WIDTH = 0.9
"""An interval wider than this share of the grid does not determine the optimum."""
MAX_DECADES = 2.0
"""Nor does an interval of an extrapolated learning rate that is wider than this."""


def error_reasons(
    forms: tuple[FormFit, ...],
    noise: Mapping[str, float],
    reference: RunsTable,
    objective: Objective,
) -> list[str]:
    """Return reasons if the held-out error or the noise hides the differences of settings."""
    reasons = []
    for form in forms:
        spread = float(np.std(np.log(getattr(reference, form.group))))
        if (
            not form.chosen
            or form.held_out is None
            or _bound_never_binds(form.group, reference, objective)
        ):
            continue
        if form.held_out.inside > TOO_LARGE * spread:
            reasons.append(
                f"The best form predicts held-out {form.group} losses with an error of "
                f"{form.held_out.inside:.2%}, and the settings differ by {spread:.2%}: "
                "it cannot rank them."
            )
        if noise.get(form.group, 0.0) > TOO_LARGE * spread:
            reasons.append(
                f"Repeated runs differ by {noise[form.group]:.2%} in the {form.group} loss, "
                f"the settings by {spread:.2%}: the noise hides the differences."
            )
    return reasons


def _bound_never_binds(group: str, reference: RunsTable, objective: Objective) -> bool:
    """Return whether the original loss is below its bound in all runs and need not be ranked."""
    if group != "original" or not isinstance(objective, Bound):
        return False
    return bool((reference.original < (1 + objective.forgetting) * reference.base_original).all())


def edge_reasons(optimum_at: OptimumAt) -> list[str]:
    """Return reasons if the optimum is at the edge of the grid: it may lie anywhere beyond."""
    domain, optima = optimum_at.domain, optimum_at.optima
    rates = tuple(np.exp(np.array(domain.measured_rate) + optimum_at.middle_rate))
    positions = (
        ("ALMR", _position(optima.almr[0], domain.measured_almr), domain.measured_almr),
        ("learning rate", _position(optima.rate[0], domain.measured_rate), rates),
    )
    reasons = []
    for name, position, (low, high) in positions:
        if EDGE <= position <= 1 - EDGE:
            continue
        end, where = (low, "below") if position < EDGE else (high, "above")
        reasons.append(
            f"The best {name} is at the edge of the grid ({end:.3g}): measure {where} it."
        )
    return reasons


def _position(value: float, ends: tuple[float, float]) -> float:
    return float((value - ends[0]) / (ends[1] - ends[0]))


def spread_reasons(optimum_at: OptimumAt, widest_rate: float | None = None) -> list[str]:
    """Return reasons if an interval is as wide as the grid.

    ``widest_rate`` replaces the grid's width for the learning rate, in natural logarithms.
    """
    domain, reasons = optimum_at.domain, []
    low, high = domain.measured_almr
    if optimum_at.almr.high - optimum_at.almr.low > MAX_WIDTH * (high - low):
        reasons.append(
            f"The best ALMR is uncertain: its 90 % interval, {optimum_at.almr.low:.2f} to "
            f"{optimum_at.almr.high:.2f}, is as wide as the grid."
        )
    low, high = domain.measured_rate
    rate = optimum_at.learning_rate
    decades = f"wider than {(widest_rate or 0) / np.log(10):g} decades"
    limit = decades if widest_rate else "as wide as the grid"
    if np.log(rate.high / rate.low) > (widest_rate or MAX_WIDTH * (high - low)):
        reasons.append(
            f"The best learning rate is uncertain: its 90 % interval, {rate.low:.2g} to "
            f"{rate.high:.2g}, is {limit}."
        )
    return reasons


def bound_reasons(
    surface: Surface, optimum_at: OptimumAt, largest: OptimumAt, objective: Objective
) -> list[str]:
    """Return a reason if the recommended setting exceeds the bound by more than its interval.

    Beyond the fitted sizes the intervals are wide: it is then enough that the optimum at the
    ``largest`` fitted size exceeds it so, and the target's predicted value exceeds it.
    """
    if not isinstance(objective, Bound):
        return []
    # ``surely`` means that even the lower end of the interval exceeds the bound.
    above, surely = _above_bound(surface, optimum_at, objective)
    beyond = (
        optimum_at.parameters > largest.parameters and _above_bound(surface, largest, objective)[1]
    )
    if not (surely or (above and beyond)):
        return []
    at, base = (
        (optimum_at.parameters, optimum_at.tokens),
        surface.base(optimum_at.parameters)["original"],
    )
    rates = np.exp(optimum_at.domain.rate + optimum_at.rate_shift + optimum_at.middle_rate)
    losses = surface.predict(optimum_at.domain.almr[:, None], rates, *at)["original"].value
    ratio, column = np.unravel_index(np.argmin(losses), losses.shape)
    bound = f"the original loss within {100 * objective.forgetting:g} % of its base"
    met = losses[ratio, column] <= (1 + objective.forgetting) * base
    return [
        f"{'The best trade-off does not keep' if met else 'No setting keeps'} {bound}: the lowest "
        f"is {losses[ratio, column] / base - 1:+.1%}, at ALMR {optimum_at.domain.almr[ratio]:.2f} "
        f"and learning rate {rates[column]:.2g}."
    ]


def _above_bound(surface: Surface, optimum_at: OptimumAt, objective: Bound) -> tuple[bool, bool]:
    """Return whether the optimum's original loss exceeds its bound, and whether its interval does.

    The optimum lies on the bound if a setting meets it, so 0.1 % above is not a violation.
    """
    bound = (1 + objective.forgetting) * surface.base(optimum_at.parameters)["original"]
    almr, rate = float(optimum_at.optima.almr[0]), float(optimum_at.optima.rate[0])
    rate = np.exp(rate + optimum_at.middle_rate)
    found = surface.predict(almr, rate, optimum_at.parameters, optimum_at.tokens)["original"]
    return bool(found.value > 1.001 * bound), bool(found.low > bound)


def extrapolation_reasons(at_target: OptimumAt) -> list[str]:
    """Return reasons if the extrapolated intervals are too wide to be useful."""
    prefix = f"At {at_target.parameters:g} parameters and {at_target.tokens:g} tokens: "
    return [
        prefix + reason for reason in spread_reasons(at_target, MAX_DECADES * float(np.log(10)))
    ]


def target_reasons(parameters: float | None, smallest: float) -> list[str]:
    """Return a reason if the target is smaller than every fitted size."""
    if parameters is None or parameters >= smallest:
        return []
    return [
        f"The target of {parameters:g} parameters is below the smallest fitted size "
        f"({smallest:g}): the law extrapolates to larger sizes only."
    ]


def poor_fit(
    forms: tuple[FormFit, ...],
    surface: Surface,
    optimum_at: OptimumAt,
    reference: RunsTable,
    objective: Objective,
) -> str | None:
    """Return a sentence if the selected fit misses what was measured, otherwise None."""
    for form in forms:
        spread = float(np.std(np.log(getattr(reference, form.group))))
        if (
            not form.chosen
            or form.held_out is None
            or _bound_never_binds(form.group, reference, objective)
        ):
            continue
        if form.held_out.inside > LARGE * spread:
            return (
                f"Poor fit: the held-out error of the {form.group} loss is "
                f"{form.held_out.inside:.2%}, and the settings differ by {spread:.2%}."
            )
    return _better_run(surface, optimum_at, reference, objective)


def _better_run(
    surface: Surface, optimum_at: OptimumAt, reference: RunsTable, objective: Objective
) -> str | None:
    """Return a sentence if a measured run is better than the law's optimum by more than noise."""
    base = surface.base(optimum_at.parameters)["original"]
    rate = float(np.exp(optimum_at.optima.rate[0] + optimum_at.middle_rate))
    predicted = surface.predict(
        float(optimum_at.optima.almr[0]), rate, optimum_at.parameters, optimum_at.tokens
    )
    best = objective.evaluate(*(predicted[group].value for group in GROUPS), base)
    allowed = reference
    if isinstance(objective, Bound):
        allowed = reference.where(reference.original <= (1 + objective.forgetting) * base)
    if not len(allowed):
        return None
    measured = objective.evaluate(allowed.additional, allowed.original, base)
    # Three standard deviations, as the best of many runs is lucky; a bound's objective is a log.
    noise = 3 * np.hypot(*(surface.groups[group].noise for group in GROUPS))
    slack = noise if isinstance(objective, Bound) else noise * abs(best)
    index = int(np.argmin(measured))
    if measured[index] > best - slack:
        return None
    return (
        f"Poor fit: run {allowed.run[index]} is better than every prediction of the law, by more "
        "than the noise."
    )
