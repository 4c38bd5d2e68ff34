"""The estimated cost of trials, as a number and as text, and the largest grid within a budget."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
import itertools
import math

from llama_cpt.config.fields import require_above_zero
from llama_cpt.config.sweep import ALMR_FIELD, LEARNING_RATE_FIELD, AxisConfig, SweepConfig
from llama_cpt.data.prepare.corpora import open_heldout
from llama_cpt.hardware.chips import CHIPS
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.runtime.errors import UserError
from llama_cpt.sweeps.trials import Trial, make_chains, smallest_trial_tokens
from llama_cpt.training.evaluation_plan import (
    MAX_SHARE,
    EvaluationPlan,
    plan_evaluations,
    run_tokens,
)

MIN_VALUES = 3
"""Minimum number of values of ALMR and of the learning rate in a grid.

To show that an optimum lies between the lowest and the highest value, a grid needs three values.
"""


def trial_flops(trial: Trial) -> float:
    """Return the number of model FLOPs for training on the trial's ``own_tokens``."""
    config = trial.config
    per_token = model_flops_per_token(
        config.architecture, config.data.sequence_length, frozen=config.lora is not None
    )
    return per_token * trial.own_tokens


def chip_hours(sweep: SweepConfig, trials: Sequence[Trial]) -> float:
    """Return the estimated chip-hours of ``trials`` on ``sweep.chip`` at the MFU ``sweep.mfu``.

    The time for loading and evaluation is not included.
    """
    return _hours(sweep, sum(map(trial_flops, trials)))


def _hours(sweep: SweepConfig, flops: float) -> float:
    peak = next(chip.peak_flops for chip in CHIPS.values() if chip.name == sweep.chip)
    return flops / (peak * sweep.mfu * 3600)


def fit_to_budget(sweep: SweepConfig, budget: float) -> SweepConfig:
    """Return a copy of ``sweep`` with as many trials as possible within ``budget`` chip-hours.

    Values are removed from the axes so that the remaining values are evenly spaced. ALMR and
    learning rate keep at least three values, including the lowest and the highest. Every other axis
    keeps at least one value. The largest token budgets are removed only if every grid that includes
    them costs more than ``budget``. Raises a UserError that states the lowest cost if every grid
    costs more than ``budget``.
    """
    require_above_zero("--budget", budget)
    cheapest = math.inf
    for count in range(len(sweep.token_budgets), -1, -1):
        if count or not sweep.token_budgets:
            part = replace(sweep, token_budgets=sweep.token_budgets[:count])
            grids = [(thinned, *_count_and_hours(thinned)) for thinned in _thinnings(part)]
            cheapest = min(cheapest, *(hours for _, _, hours in grids))
            # Choose the grid with the most trials. Among grids with equally many trials, choose the
            # grid with the most values on its shortest axis.
            if affordable := [grid for grid in grids if grid[2] <= budget]:
                return max(affordable, key=lambda grid: (grid[1], _shortest_axis(grid[0])))[0]
    raise UserError(
        f"--budget={budget:g} chip-hours is less than the cost of every grid of this sweep. The "
        f"smallest grid, with up to {MIN_VALUES} ratios and {MIN_VALUES} learning rates, costs "
        f"{cheapest:.3g}. Increase the budget, or set fewer tokens (num_steps, token_budgets) or "
        "a smaller model."
    )


def _count_and_hours(sweep: SweepConfig) -> tuple[int, float]:
    """Return the number of trials and the sum of their chip-hours."""
    trials = [trial for chain in make_chains(sweep) for trial in chain]
    return len(trials), chip_hours(sweep, trials)


def _thinnings(sweep: SweepConfig) -> Iterator[SweepConfig]:
    """Yield copies of the sweep with fewer values per axis, in every permitted combination.

    One copy has all values. If the sweep has Sobol points, the copies also have fewer points, but
    at least four.
    """
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


def describe_sweep(sweep: SweepConfig) -> str:
    """Return the axes, Sobol points and token budgets of the sweep in the syntax of a config."""
    lines = [
        f'  AxisConfig("{axis.field}", {axis.values})'
        if axis.values
        else f'  AxisConfig("{axis.field}", between={axis.between}, scale="{axis.scale}")'
        for axis in sweep.axes
    ]
    points = [f"  points={sweep.points}"] if sweep.points else []
    budgets = [f"  token_budgets={sweep.token_budgets}"] if sweep.token_budgets else []
    return "\n".join(["proposed:", *lines, *points, *budgets, ""])


def trial_table(sweep: SweepConfig, trials: Sequence[Trial]) -> str:
    """Return a text table with the steps, tokens and chip-hours of each trial, and their sums."""
    rows = [("trial", "steps", "tokens", "chip-hours")]
    rows += [_row(sweep, trial.name, [trial]) for trial in trials]
    rows.append(_row(sweep, f"{len(trials)} trials", trials))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"{row[0]:<{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    notes = (
        f"{sweep.chip} at MFU {sweep.mfu:.0%}, which is assumed; loading and evaluation are not "
        "counted. The tokens of a shared stable phase count once."
    )
    return "\n".join([*lines, notes])


def _row(sweep: SweepConfig, name: str, trials: Sequence[Trial]) -> tuple[str, ...]:
    steps = sum(trial.config.num_steps - trial.first_step for trial in trials)
    tokens = sum(trial.own_tokens for trial in trials)
    return name, f"{steps:,}", f"{tokens:,}", f"{chip_hours(sweep, trials):,.3g}"


def heldout_cost(sweep: SweepConfig, trials: Sequence[Trial]) -> str:
    """Return a sentence with the tokens and chip-hours of the held-out evaluations of ``trials``.

    The numbers are upper bounds, because trials that start from the same weights share the first
    evaluation. If the held-out corpora are not prepared yet, the number of tokens is not known.
    """
    limit, trained = smallest_trial_tokens(trials), sum(trial.own_tokens for trial in trials)
    plans: dict[tuple[Hashable, ...], EvaluationPlan] = {}
    count, tokens, flops = 0, 0, 0.0
    try:
        for config in (trial.config for trial in trials):
            key = config.data, config.evaluation, config.num_steps, run_tokens(config)
            if key not in plans:
                corpora = open_heldout(config.data)
                plans[key] = plan_evaluations(config, corpora, limit_tokens=limit)
            evaluated = len(plans[key].steps) * plans[key].tokens
            # A forward pass takes a third of the FLOPs of a training step.
            forward = model_flops_per_token(config.architecture, config.data.sequence_length) / 3
            count, tokens = count + len(plans[key].steps), tokens + evaluated
            flops += evaluated * forward
    except UserError as error:
        bound = "" if sweep.train.evaluation.documents else f"at most {MAX_SHARE:.0%} of the tokens"
        return f"held-out evaluation: {bound or 'its cost is not known yet'} ({error})"
    return (
        f"held-out evaluation: at most {count:,} times, {tokens:,} tokens, {tokens / trained:.1%} "
        f"of the tokens above, {_hours(sweep, flops):,.3g} chip-hours"
    )
