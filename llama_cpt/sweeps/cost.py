"""What trials cost before they are run, and the grid that a budget pays for."""

from collections.abc import Sequence
from dataclasses import replace
import itertools
import math

from llama_cpt.chips import CHIPS
from llama_cpt.errors import UserError
from llama_cpt.metrics import model_flops_per_token
from llama_cpt.sweep_config import RATE, RATIO, AxisConfig, SweepConfig
from llama_cpt.sweeps.trials import Trial, chains_of

LEAST_VALUES = 3
"""A curve through fewer values of a ratio or a rate has no optimum inside them."""


def trial_flops(trial: Trial) -> float:
    """Floating-point operations that its own tokens need (``metrics.model_flops_per_token``)."""
    config = trial.config
    per_token = model_flops_per_token(
        config.model, config.data.sequence_length, frozen=config.lora is not None
    )
    return per_token * trial.own_tokens


def chip_hours(sweep: SweepConfig, trials: Sequence[Trial]) -> float:
    """On ``sweep.chip`` at ``sweep.mfu``; evaluation and loading are not counted."""
    peak = next(chip.peak_flops for chip in CHIPS.values() if chip.name == sweep.chip)
    return sum(map(trial_flops, trials)) / (peak * sweep.mfu * 3600)


def within_budget(sweep: SweepConfig, budget: float) -> SweepConfig:
    """The sweep with as many of its values as ``budget`` chip-hours pay for, evenly thinned.

    ALMR and learning rate keep at least three values each, the lowest and the highest among them;
    other axes may come down to one. Raises UserError where not even that can be paid, with what it
    costs.
    """
    choices = [range(_least(axis), len(axis.values) + 1) for axis in sweep.axes if axis.values]
    points = range(sweep.points, min(sweep.points, 4) - 1, -1)
    found, cheapest = [], math.inf
    for count, kept in itertools.product(points, itertools.product(*choices)):
        thinned = replace(sweep, points=count, axes=_thinned(sweep.axes, kept))
        trials = [trial for chain in chains_of(thinned) for trial in chain]
        cost = chip_hours(thinned, trials)
        cheapest = min(cheapest, cost)
        if cost <= budget:
            # As many trials as can be paid; among equals the squarer grid.
            found.append((len(trials), min(kept, default=0), thinned))
    if not found:
        raise UserError(
            f"{budget:g} chip-hours pay for no grid of this sweep: its smallest, {LEAST_VALUES} "
            f"values an axis, costs {cheapest:.3g}. Fewer tokens (num_steps, token_budgets) or a "
            "smaller model cost less."
        )
    return max(found, key=lambda one: one[:2])[2]


def _least(axis: AxisConfig) -> int:
    return min(LEAST_VALUES, len(axis.values)) if axis.field in (RATIO, RATE) else 1


def _thinned(axes: Sequence[AxisConfig], kept: Sequence[int]) -> tuple[AxisConfig, ...]:
    counts = iter(kept)
    return tuple(_evenly(axis, next(counts)) if axis.values else axis for axis in axes)


def _evenly(axis: AxisConfig, count: int) -> AxisConfig:
    last = len(axis.values) - 1
    places = [round(i * last / max(count - 1, 1)) for i in range(count)]
    names = tuple(axis.names[place] for place in places) if axis.names else ()
    return replace(axis, values=tuple(axis.values[place] for place in places), names=names)
