"""Checks of whether the data supports a recommendation.

Each function with a name that ends in ``_reasons`` returns one sentence per failed check, or an
empty list if all checks pass.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from llama_cpt.mixture_law.law import FormFit, HeldOut
from llama_cpt.mixture_law.objective import Bound, Objective
from llama_cpt.mixture_law.optimum import OptimumAt
from llama_cpt.mixture_law.runs_table import RunsTable
from llama_cpt.mixture_law.surface import Surface
from llama_cpt.mixture_law.table import GROUPS

TOO_LARGE, LARGE = 1 / 2, 1 / 3
"""Limits of (held-out error) / (standard deviation of the log losses over settings).

Above ``TOO_LARGE``, there is no recommendation; above ``LARGE``, the fit is marked as poor.
"""
EDGE = 0.02
"""Width of the edge of the grid, as a share of the grid's width.

An optimum within this distance of an end of the grid, or beyond the end, is at the edge.
"""
MAX_WIDTH = 0.9
"""Largest accepted width of the interval of an optimum, as a share of the grid's width."""
MAX_DECADES = 2.0
"""Largest accepted width of the interval of an extrapolated learning rate, in decades."""


def error_reasons(
    forms: tuple[FormFit, ...],
    noise: Mapping[str, float],
    reference: RunsTable,
    objective: Objective,
) -> list[str]:
    """Return reasons if the held-out error or the noise is too large to rank the settings.

    The error and the noise are compared with the standard deviation of the log losses of the
    ``reference`` runs.
    """
    reasons = []
    for form, held_out, spread in _relevant_forms(forms, reference, objective):
        if held_out.inside > TOO_LARGE * spread:
            reasons.append(
                f"The best form has a held-out error of {held_out.inside:.2%} for the "
                f"{form.group} loss, but the standard deviation over settings is only "
                f"{spread:.2%}: the form cannot rank the settings."
            )
        if noise.get(form.group, 0.0) > TOO_LARGE * spread:
            reasons.append(
                f"The standard deviation of the {form.group} loss is {noise[form.group]:.2%} over "
                f"repeated runs and {spread:.2%} over settings: settings cannot be distinguished "
                f"from noise."
            )
    return reasons


def _relevant_forms(
    forms: tuple[FormFit, ...], reference: RunsTable, objective: Objective
) -> Iterator[tuple[FormFit, HeldOut, float]]:
    """Yield each selected form, its held-out error, and the spread of the log losses.

    A group is omitted if its held-out error is unknown or its loss cannot affect the optimum.
    """
    for form in forms:
        if (
            form.chosen
            and form.held_out is not None
            and not _bound_never_binds(form.group, reference, objective)
        ):
            # The differences between settings that the form must resolve, in log loss.
            yield form, form.held_out, float(np.std(np.log(getattr(reference, form.group))))


def _bound_never_binds(group: str, reference: RunsTable, objective: Objective) -> bool:
    """Return whether ``group`` is "original" and its loss is below the bound in all runs.

    In this case, the optimum does not depend on the original loss, and the fit of this loss need
    not be accurate.
    """
    if group != "original" or not isinstance(objective, Bound):
        return False
    return bool((reference.original < (1 + objective.forgetting) * reference.base_original).all())


def edge_reasons(optimum_at: OptimumAt) -> list[str]:
    """Return a reason if the optimal ratio or learning rate is at the edge of the grid.

    The true optimum can then be outside the grid.
    """
    domain, optima = optimum_at.domain, optimum_at.optima
    rates = tuple(np.exp(np.array(domain.grid_rate) + optimum_at.middle_rate))
    positions = (
        ("ALMR", _position(optima.almr[0], domain.grid_almr), domain.grid_almr),
        ("learning rate", _position(optima.rate[0], domain.grid_rate), rates),
    )
    reasons = []
    for name, position, (low, high) in positions:
        if EDGE <= position <= 1 - EDGE:
            continue
        end, where = (low, "lower") if position < EDGE else (high, "higher")
        reasons.append(
            f"The optimal {name} is at the edge of the grid ({end:.3g}); add runs at {where} "
            f"values."
        )
    return reasons


def _position(value: float, ends: tuple[float, float]) -> float:
    """Return the position of a value between two ends: 0 at the lower end, 1 at the upper end."""
    return float((value - ends[0]) / (ends[1] - ends[0]))


def spread_reasons(optimum_at: OptimumAt, widest_rate: float | None = None) -> list[str]:
    """Return reasons if the interval of the ratio or of the learning rate is too wide.

    The limit is ``MAX_WIDTH`` times the width of the grid. ``widest_rate``, in natural logarithms,
    replaces this limit for the learning rate.
    """
    domain, reasons = optimum_at.domain, []
    # A uniform distribution over the grid has a 90 % interval of 0.9 of its width (``MAX_WIDTH``).
    low, high = domain.grid_almr
    if optimum_at.almr.high - optimum_at.almr.low > MAX_WIDTH * (high - low):
        reasons.append(
            f"The optimal ALMR is uncertain: its 90 % interval, {optimum_at.almr.low:.2f} to "
            f"{optimum_at.almr.high:.2f}, is wider than {MAX_WIDTH:.0%} of the grid."
        )
    low, high = domain.grid_rate
    rate = optimum_at.learning_rate
    decades = f"wider than {(widest_rate or 0) / np.log(10):g} decades"
    limit = decades if widest_rate else f"wider than {MAX_WIDTH:.0%} of the grid"
    if np.log(rate.high / rate.low) > (widest_rate or MAX_WIDTH * (high - low)):
        reasons.append(
            f"The optimal learning rate is uncertain: its 90 % interval, {rate.low:.2g} to "
            f"{rate.high:.2g}, is {limit}."
        )
    return reasons


def bound_reasons(
    surface: Surface, optimum_at: OptimumAt, largest: OptimumAt, objective: Objective
) -> list[str]:
    """Return a reason if the original loss at the optimum is significantly above its bound.

    The excess is significant if the whole prediction interval is above the bound. Beyond the fitted
    sizes, intervals are wide; a point prediction above the bound is then sufficient if the whole
    interval at the ``largest`` fitted size is above the bound for that size.
    """
    if not isinstance(objective, Bound):
        return []
    # ``surely``: the lower end of the interval is above the bound.
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
    # The message states the lowest original loss, which shows its distance from the bound.
    rates = np.exp(optimum_at.domain.rate + optimum_at.rate_shift + optimum_at.middle_rate)
    predicted = surface.predict(optimum_at.domain.almr[:, None], rates, *at)["original"].value
    losses = np.asarray(predicted)
    ratio, column = np.unravel_index(np.argmin(losses), losses.shape)
    bound = f"the original loss within {100 * objective.forgetting:g} % of the base model's"
    met = losses[ratio, column] <= (1 + objective.forgetting) * base
    return [
        f"{'The optimum does not keep' if met else 'No setting keeps'} {bound}: the lowest "
        f"predicted loss is {losses[ratio, column] / base - 1:+.1%} relative to it, at ALMR "
        f"{optimum_at.domain.almr[ratio]:.2f} and learning rate {rates[column]:.2g}."
    ]


def _above_bound(surface: Surface, optimum_at: OptimumAt, objective: Bound) -> tuple[bool, bool]:
    """Return whether the predicted original loss, and its whole interval, are above the bound.

    The optimum often lies on the bound, so a loss less than 0.1 % above the bound is not
    considered to be above it.
    """
    bound = (1 + objective.forgetting) * surface.base(optimum_at.parameters)["original"]
    almr, rate = float(optimum_at.optima.almr[0]), float(optimum_at.optima.rate[0])
    rate = np.exp(rate + optimum_at.middle_rate)
    found = surface.predict(almr, rate, optimum_at.parameters, optimum_at.tokens)["original"]
    return bool(found.value > 1.001 * bound), bool(found.low > bound)


def extrapolation_reasons(at_target: OptimumAt) -> list[str]:
    """Return reasons if the intervals at the target are too wide; see ``spread_reasons``."""
    prefix = f"At {at_target.parameters:g} parameters and {at_target.tokens:g} tokens: "
    return [
        prefix + reason for reason in spread_reasons(at_target, MAX_DECADES * float(np.log(10)))
    ]


def target_reasons(parameters: float | None, smallest: float) -> list[str]:
    """Return a reason if the target size is below the smallest fitted size."""
    if parameters is None or parameters >= smallest:
        return []
    return [
        f"The target of {parameters:g} parameters is below the smallest fitted size "
        f"({smallest:g}); the law extrapolates to larger sizes only."
    ]


def poor_fit(
    forms: tuple[FormFit, ...],
    surface: Surface,
    optimum_at: OptimumAt,
    reference: RunsTable,
    objective: Objective,
) -> str | None:
    """Return a warning if the selected forms fit the runs poorly, otherwise None.

    The fit is poor if a held-out error is large relative to the differences between settings, or if
    a run is significantly better than the predicted optimum.
    """
    for form, held_out, spread in _relevant_forms(forms, reference, objective):
        if held_out.inside > LARGE * spread:
            return (
                f"Poor fit: the held-out error of the {form.group} loss is "
                f"{held_out.inside:.2%}, but the standard deviation of this loss over "
                f"settings is only {spread:.2%}."
            )
    return _better_run(surface, optimum_at, reference, objective)


def _better_run(
    surface: Surface, optimum_at: OptimumAt, reference: RunsTable, objective: Objective
) -> str | None:
    """Return a warning if a run has a significantly lower objective than the predicted optimum.

    The result is None if there is no such run.
    """
    base = surface.base(optimum_at.parameters)["original"]
    rate = float(np.exp(optimum_at.optima.rate[0] + optimum_at.middle_rate))
    predicted = surface.predict(
        float(optimum_at.optima.almr[0]), rate, optimum_at.parameters, optimum_at.tokens
    )
    additional, original = (predicted[group].value for group in GROUPS)
    best = float(objective.evaluate(additional, original, base))
    # A run above the bound is not a better choice, however low its objective is.
    allowed = reference
    if isinstance(objective, Bound):
        allowed = reference.where(reference.original <= (1 + objective.forgetting) * base)
    if not len(allowed):
        return None
    observed = np.asarray(objective.evaluate(allowed.additional, allowed.original, base))
    # Three standard deviations, because the best of many runs has a favorable error.
    additional_noise, original_noise = (surface.groups[group].noise for group in GROUPS)
    noise = 3 * np.hypot(additional_noise, original_noise)
    # The objective of a bound is the log of a loss, like the noise; that of weights is a loss.
    slack = noise if isinstance(objective, Bound) else noise * abs(best)
    index = int(np.argmin(observed))
    if observed[index] > best - slack:
        return None
    return (
        f"Poor fit: run {allowed.run[index]} is better than the optimum of the law by more than "
        "three standard deviations of the noise."
    )
