"""Values that change at given steps of a run: the mixture ratio and the weights of corpora."""

from collections.abc import Mapping
from fractions import Fraction
import math

from llama_cpt.runtime.errors import UserError

StagedValue = float | tuple[tuple[int, float], ...]
"""Type of a config field: one value for all steps, or ``((from_step, value), ...)``."""
Stages = tuple[tuple[int, Fraction], ...]
"""``((from_step, value), ...)`` with exact decimal values; the first step is 0."""


def exact_stages(name: str, value: StagedValue, *, share: bool = False) -> Stages:
    """Return ``value`` as stages; ``name`` is the name of the field in error messages.

    Raises UserError if the steps do not increase from 0, or if a value is negative or not finite.
    If ``share`` is True, values above 1 are also errors.
    """
    stages = value if isinstance(value, tuple) else ((0, value),)
    steps = [step for step, _ in stages]
    if not stages or steps[0] != 0 or steps != sorted(set(steps)):
        raise UserError(f"{name}={value}: its steps must start at 0 and increase.")
    bounds = "in [0, 1]; set a share of tokens" if share else "a finite number, at least 0"
    for _, one in stages:
        if not 0 <= one < math.inf or (share and one > 1):
            raise UserError(f"{name}={one:g} must be {bounds}.")
    return tuple((step, Fraction(str(one))) for step, one in stages)


def value_at(stages: Stages, step: int) -> Fraction:
    """Return the value of ``stages`` at ``step``."""
    return next(value for start, value in reversed(stages) if start <= step)


def check_weights(group: str, shares: Stages, weights: Mapping[str, Stages]) -> None:
    """Raise UserError if a corpus has no weight, or if a group with a share has no weight.

    ``group`` is the name of the group. ``shares`` are the stages of its share of the rows, and
    ``weights`` are the stages of the weight of each corpus of the group, by name.
    """
    for name, stages in weights.items():
        if not any(weight for _, weight in stages):
            raise UserError(
                f"data: weight of corpus {name!r} must be a finite number above 0 in at least one "
                "stage; set it, or remove the corpus."
            )
    for step in sorted({start for stages in (shares, *weights.values()) for start, _ in stages}):
        if value_at(shares, step) and not any(value_at(one, step) for one in weights.values()):
            raise UserError(
                f"data: from step {step} on, the weights of all {group} corpora are 0, but "
                "data.almr gives them rows; set a weight above 0."
            )
