"""What trials cost before they are run, and the grid that a budget pays for."""

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

LEAST_VALUES = 3
"""A curve through fewer values of a ratio or a rate has no optimum inside them."""


def trial_flops(trial: Trial) -> float:
    """Floating-point operations that its own tokens need (``model_flops_per_token``)."""
    config = trial.config
    per_token = model_flops_per_token(
        config.model, config.data.sequence_length, frozen=config.lora is not None
    )
    return per_token * trial.own_tokens


def chip_hours(sweep: SweepConfig, trials: Sequence[Trial]) -> float:
    """On ``sweep.chip`` at ``sweep.mfu``; evaluation and loading are not counted."""
    peak = next(chip.peak_flops for chip in CHIPS.values() if chip.name == sweep.chip)
    return sum(map(trial_flops, trials)) / (peak * sweep.mfu * 3600)


def fit_to_budget(sweep: SweepConfig, budget: float) -> SweepConfig:
    """The sweep with as many of its values as ``budget`` chip-hours pay for, evenly thinned.

    ALMR and learning rate keep at least three values each, the lowest and the highest among them;
    other axes may come down to one; the largest token budgets go where nothing else helps. Raises
    UserError where not even that can be paid, with what it costs.
    """
    require_above_zero("--budget", budget)
    cheapest = math.inf
    for count in range(len(sweep.token_budgets), -1, -1):
        if count or not sweep.token_budgets:
            part = replace(sweep, token_budgets=sweep.token_budgets[:count])
            priced = [(thinned, *_price(thinned)) for thinned in _thinnings(part)]
            cheapest = min(cheapest, *(cost for _, _, cost in priced))
            # As many trials as can be paid; among equals the squarer grid.
            if paid := [one for one in priced if one[2] <= budget]:
                return max(paid, key=lambda one: (one[1], _narrowest(one[0])))[0]
    raise UserError(
        f"{budget:g} chip-hours pay for no grid of this sweep: its smallest costs {cheapest:.3g}, "
        f"of {LEAST_VALUES} ratios and {LEAST_VALUES} rates where it has as many. Fewer tokens "
        "(num_steps, token_budgets) or a smaller model cost less."
    )


def _price(sweep: SweepConfig) -> tuple[int, float]:
    """Trials, chip-hours."""
    trials = [trial for chain in make_chains(sweep) for trial in chain]
    return len(trials), chip_hours(sweep, trials)


def _thinnings(sweep: SweepConfig) -> Iterator[SweepConfig]:
    choices = [range(_least(axis), len(axis.values) + 1) for axis in sweep.axes if axis.values]
    points = range(sweep.points, min(sweep.points, 4) - 1, -1)
    for count, kept in itertools.product(points, itertools.product(*choices)):
        yield replace(sweep, points=count, axes=_thinned(sweep.axes, kept))


def _narrowest(sweep: SweepConfig) -> int:
    return min((len(axis.values) for axis in sweep.axes if axis.values), default=0)


def _least(axis: AxisConfig) -> int:
    return (
        min(LEAST_VALUES, len(axis.values))
        if axis.field in (ALMR_FIELD, LEARNING_RATE_FIELD)
        else 1
    )


def _thinned(axes: Sequence[AxisConfig], kept: Sequence[int]) -> tuple[AxisConfig, ...]:
    counts = iter(kept)
    return tuple(_evenly(axis, next(counts)) if axis.values else axis for axis in axes)


def _evenly(axis: AxisConfig, count: int) -> AxisConfig:
    last = len(axis.values) - 1
    places = [round(i * last / max(count - 1, 1)) for i in range(count)]
    names = tuple(axis.names[place] for place in places) if axis.names else ()
    return replace(axis, values=tuple(axis.values[place] for place in places), names=names)
