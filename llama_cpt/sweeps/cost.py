"""The cost of trials before they run, and the largest grid within a budget."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
import itertools
import math

from llama_cpt.config.fields import require_above_zero
from llama_cpt.config.sweep import ALMR_FIELD, LEARNING_RATE_FIELD, AxisConfig, SweepConfig
from llama_cpt.hardware.chips import CHIPS
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.runtime.errors import UserError
from llama_cpt.sweeps.trials import Trial, make_chains

MIN_VALUES = 3
"""Minimum values of ALMR and learning rate: an optimum between them needs three."""


def trial_flops(trial: Trial) -> float:
    """Return the FLOPs of the trial's own tokens, by ``model_flops_per_token``."""
    config = trial.config
    per_token = model_flops_per_token(
        config.model, config.data.sequence_length, frozen=config.lora is not None
    )
    return per_token * trial.own_tokens


def chip_hours(sweep: SweepConfig, trials: Sequence[Trial]) -> float:
    """Return chip-hours on ``sweep.chip`` at ``sweep.mfu``, without evaluation and loading."""
    peak = next(chip.peak_flops for chip in CHIPS.values() if chip.name == sweep.chip)
    return sum(map(trial_flops, trials)) / (peak * sweep.mfu * 3600)


def fit_to_budget(sweep: SweepConfig, budget: float) -> SweepConfig:
    """Return the sweep with as many of its values as ``budget`` chip-hours allow, evenly thinned.

    ALMR and learning rate keep at least three values each, including the lowest and the highest;
    other axes may shrink to one value. The largest token budgets are dropped only if nothing else
    helps. Raises UserError, with the lowest cost, if no such grid is within the budget.
    """
    require_above_zero("--budget", budget)
    cheapest = math.inf
    for count in range(len(sweep.token_budgets), -1, -1):
        if count or not sweep.token_budgets:
            part = replace(sweep, token_budgets=sweep.token_budgets[:count])
            grids = [(thinned, *_count_and_hours(thinned)) for thinned in _thinnings(part)]
            cheapest = min(cheapest, *(hours for _, _, hours in grids))
            # The grid with the most trials; among equals the one whose shortest axis is longest.
            if affordable := [grid for grid in grids if grid[2] <= budget]:
                return max(affordable, key=lambda grid: (grid[1], _shortest_axis(grid[0])))[0]
    raise UserError(
        f"--budget={budget:g} chip-hours pay for no grid of this sweep: the smallest, of "
        f"up to {MIN_VALUES} ratios and {MIN_VALUES} rates, costs {cheapest:.3g}. Raise the "
        "budget, or set fewer tokens (num_steps, token_budgets) or a smaller model."
    )


def _count_and_hours(sweep: SweepConfig) -> tuple[int, float]:
    """Return the number of trials and their chip-hours."""
    trials = [trial for chain in make_chains(sweep) for trial in chain]
    return len(trials), chip_hours(sweep, trials)


def _thinnings(sweep: SweepConfig) -> Iterator[SweepConfig]:
    """Yield the sweep with every allowed number of values on each axis."""
    choices = [range(_min_values(axis), len(axis.values) + 1) for axis in sweep.axes if axis.values]
    points = range(sweep.points, min(sweep.points, 4) - 1, -1)
    for count, kept in itertools.product(points, itertools.product(*choices)):
        yield replace(sweep, points=count, axes=_thinned(sweep.axes, kept))


def _shortest_axis(sweep: SweepConfig) -> int:
    return min((len(axis.values) for axis in sweep.axes if axis.values), default=0)


def _min_values(axis: AxisConfig) -> int:
    return (
        min(MIN_VALUES, len(axis.values)) if axis.field in (ALMR_FIELD, LEARNING_RATE_FIELD) else 1
    )


def _thinned(axes: Sequence[AxisConfig], kept: Sequence[int]) -> tuple[AxisConfig, ...]:
    counts = iter(kept)
    return tuple(_evenly(axis, next(counts)) if axis.values else axis for axis in axes)


def _evenly(axis: AxisConfig, count: int) -> AxisConfig:
    last = len(axis.values) - 1
    indices = [round(i * last / max(count - 1, 1)) for i in range(count)]
    names = tuple(axis.names[i] for i in indices) if axis.names else ()
    return replace(axis, values=tuple(axis.values[i] for i in indices), names=names)
