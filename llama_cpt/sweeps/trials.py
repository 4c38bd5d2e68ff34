"""The trials of a sweep, and chains of trials with common steps before the learning-rate decay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
import itertools
from typing import Any

import numpy as np
from scipy.stats import qmc

from llama_cpt.config.fields import did_you_mean, from_dict, renamed_path, to_dict
from llama_cpt.config.schema import TrainConfig
from llama_cpt.config.sweep import (
    ALMR_FIELD,
    LEARNING_RATE_FIELD,
    AxisConfig,
    SizeConfig,
    SweepConfig,
    Value,
)
from llama_cpt.mixture_law.law import OptimalRate
from llama_cpt.mixture_law.law_file import load_law
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.evaluation_plan import run_tokens


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    config: TrainConfig
    size: str
    """Name of the trial's model size; "" if the sweep has one size."""
    parent: "Trial | None" = None
    """Trial with the next smaller token budget; None for the smallest budget.

    Training continues from the parent's checkpoint at the start of the parent's learning-rate
    decay.
    """

    @property
    def stable_steps(self) -> int:
        """Number of steps before the learning-rate decay."""
        return self.config.num_steps - self.config.optimizer.decay_steps

    @property
    def first_step(self) -> int:
        """Number of steps before the parent's checkpoint; 0 if the trial has no parent."""
        return self.parent.stable_steps if self.parent else 0

    @property
    def own_tokens(self) -> int:
        """Number of tokens in the steps after ``first_step``, including padding."""
        return (self.config.num_steps - self.first_step) * tokens_per_step(self.config)


BudgetChain = tuple[Trial, ...]
"""Trials that differ only in their token budget, smallest budget first.

One worker runs all trials of a chain, in this order.
"""

Point = dict[str, tuple[str, Value]]
"""A point of the sweep: a dict from the field of each axis to (name of the value, value)."""


def make_chains(sweep: SweepConfig) -> list[BudgetChain]:
    """Return all trials of ``sweep`` as chains, grouped by model size.

    Raises UserError if the field of an axis is unknown, if a field does not accept a value, or if
    two trials would have the same name.
    """
    values = to_dict(sweep.train)
    for axis in sweep.axes:
        _require_field(sweep.train, values, axis.field)
    sizes = sweep.sizes or (SizeConfig("", sweep.train.model, sweep.train.init_from),)
    points, optimal = _points(sweep), _load_optimal_rate(sweep.law)
    chains = [_chain(sweep, size, point, optimal) for size in sizes for point in points]
    names = [trial.name for chain in chains for trial in chain]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two trials are named {name}; set names for the values of the axes.")
    return chains


def tokens_per_step(config: TrainConfig) -> int:
    """Return the number of tokens per training step, including padding."""
    return config.global_batch_size * config.data.sequence_length


def smallest_trial_tokens(trials: Sequence[Trial]) -> int:
    """Return the number of training tokens of the smallest trial, including padding."""
    return min(run_tokens(trial.config) for trial in trials)


def mean_almr(config: TrainConfig) -> Fraction:
    """Return the target ALMR, averaged over all steps of the run.

    ALMR is the share of training tokens from ``data.additional``, from 0 to 1.
    """
    stages = [*config.data.almr_stages(), (config.num_steps, Fraction(0))]
    parts = [
        (min(until, config.num_steps) - min(start, config.num_steps)) * almr
        for (start, almr), (until, _) in itertools.pairwise(stages)
    ]
    return sum(parts, Fraction(0)) / config.num_steps


def mixture_order(config: TrainConfig) -> str:
    """Return the kind of ``data.almr``: ``interleaved``, ``block`` or ``staged``.

    ``interleaved`` means one ratio for all steps. ``block`` means several stages, each of which
    uses only one group of corpora. ``staged`` means any other list of stages.
    """
    shares = [almr for step, almr in config.data.almr_stages() if step < config.num_steps]
    if len(shares) == 1:
        return "interleaved"
    return "block" if set(shares) <= {0, 1} else "staged"


def _points(sweep: SweepConfig) -> list[Point]:
    """Return the points of the sweep.

    The points are the Cartesian product of three sets: the pairs of ALMR and learning rate in
    ``cells``, the Sobol points of the axes with ``between``, and the grid of the axes with
    ``values``.
    """
    grids = [
        [(axis.field, (name, value)) for name, value in zip(_names(axis), axis.values, strict=True)]
        for axis in sweep.axes
        if axis.values
    ]
    cells = [
        ((ALMR_FIELD, (_name(a), a)), (LEARNING_RATE_FIELD, (_name(r), r))) for a, r in sweep.cells
    ] or [()]
    sobol = _sobol_points([axis for axis in sweep.axes if axis.between], sweep)
    parts = itertools.product(cells, sobol, itertools.product(*grids))
    found = [dict(itertools.chain(*part)) for part in parts]
    # The order of the fields in a point is their order in the trial's name.
    order = [
        *((ALMR_FIELD, LEARNING_RATE_FIELD) if sweep.cells else ()),
        *(axis.field for axis in sweep.axes),
    ]
    return [{field: point[field] for field in order} for point in found]


def _sobol_points(
    axes: Sequence[AxisConfig], sweep: SweepConfig
) -> list[tuple[tuple[str, tuple[str, Value]], ...]]:
    """Return ``sweep.points`` scrambled Sobol points, which depend on the seed of the config.

    Values are rounded to the smallest number of digits, at least three, with which all points are
    distinct.
    """
    if not axes:
        return [()]
    sampler = qmc.Sobol(len(axes), rng=np.random.default_rng(sweep.train.seed))
    # Sobol points are balanced only if their number is a power of two. The next power of two is
    # drawn, and the first ``sweep.points`` are used.
    unit = sampler.random_base2(max(sweep.points - 1, 1).bit_length())[: sweep.points]
    columns = [_scale(unit[:, column], axis) for column, axis in enumerate(axes)]
    names: list[tuple[str, ...]] = []
    for digits in range(3, 18):
        texts = [[f"{number:.{digits}g}" for number in column] for column in columns]
        names = list(zip(*texts, strict=True))
        if len(set(names)) == len(names):
            break
    return [
        tuple((axis.field, (name, float(name))) for axis, name in zip(axes, row, strict=True))
        for row in names
    ]


def _scale(unit: np.ndarray, axis: AxisConfig) -> np.ndarray:
    low, high = axis.between
    return low * (high / low) ** unit if axis.scale == "log" else low + unit * (high - low)


def _names(axis: AxisConfig) -> tuple[str, ...]:
    return axis.names or tuple(_name(value) for value in axis.values)


def _name(value: Value) -> str:
    if isinstance(value, tuple):
        return "_".join(f"{share:g}_from_{step}" for step, share in value)
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "_")


def _load_optimal_rate(law: str) -> OptimalRate | None:
    """Return the optimal learning rate as a function of ALMR, read from the file ``law``.

    Returns None if ``law`` is "". Raises UserError if the file contains no optimal learning rate.
    """
    if not law:
        return None
    if (optimal := load_law(law).optimal_rate) is None:
        raise UserError(
            f"{law} has no optimal learning rate per ALMR, because the fit was rejected; set a "
            "different law."
        )
    return optimal


def _rate_at(optimal: OptimalRate, almr: float) -> float:
    """Return the optimal learning rate at ``almr``.

    The logarithm of the rate is interpolated linearly. Outside the law's range of ALMR,
    the rate at the nearest end of the range is returned.
    """
    return float(np.exp(np.interp(almr, optimal.almr, np.log(optimal.learning_rate.value))))


def _chain(
    sweep: SweepConfig, size: SizeConfig, point: Point, optimal: OptimalRate | None
) -> BudgetChain:
    """Return the trials of one point and model size, one per token budget."""
    values = to_dict(replace(sweep.train, model=size.model, init_from=size.init_from))
    parts = [size.name] if size.name else []
    for field, (name, value) in point.items():
        _set(values, field, value)
        parts.append(f"{field.rsplit('.', 1)[-1]}_{name}")
    stem = "-".join(parts) or "trial"
    # from_dict checks the type of every value and names the field in its errors.
    config = from_dict(TrainConfig, values, f"trial {stem}")
    if optimal:
        # With a law, the values of the learning rate are multiples of the optimal rate.
        optimizer = config.optimizer
        rate = optimizer.peak_learning_rate * _rate_at(optimal, float(mean_almr(config)))
        optimizer = replace(optimizer, peak_learning_rate=float(f"{rate:.3g}"))
        config = replace(config, optimizer=optimizer)
    if not sweep.token_budgets:
        return (Trial(stem, replace(config, output=f"{sweep.output}/{stem}"), size.name),)
    chain: list[Trial] = []
    for tokens in sweep.token_budgets:
        last = tokens == sweep.token_budgets[-1]
        name = f"{stem}-tokens_{tokens}"
        trial = replace(_with_tokens(config, tokens, sweep), output=f"{sweep.output}/{name}")
        parent = chain[-1] if chain else None
        trial = trial if last else _with_stable_checkpoint(trial)
        chain.append(Trial(name, trial, size.name, parent))
    return tuple(chain)


def _with_tokens(config: TrainConfig, tokens: int, sweep: SweepConfig) -> TrainConfig:
    steps = -(-tokens // tokens_per_step(config))
    optimizer = config.optimizer
    if optimizer.schedule == "wsd":
        optimizer = replace(optimizer, decay_steps=max(round(steps * sweep.decay_fraction), 1))
    return replace(config, num_steps=steps, optimizer=optimizer)


def _with_stable_checkpoint(config: TrainConfig) -> TrainConfig:
    """Return ``config`` with settings that save and keep a checkpoint at the start of the decay.

    The trial with the next larger token budget continues from this checkpoint. All checkpoints are
    evenly spaced, so the decay can start some steps earlier than in ``config``. Raises UserError if
    the run has no step before the decay.
    """
    stable = config.num_steps - config.optimizer.decay_steps
    if stable < 1:
        raise UserError(
            f"token_budgets: the smallest has only {config.num_steps} steps, which is too few for "
            "a stable phase and a decay; increase it."
        )
    saves = -(-stable // config.checkpoint.every_steps)
    every = stable // saves
    decay = config.num_steps - saves * every
    return replace(
        config,
        optimizer=replace(config.optimizer, decay_steps=decay),
        checkpoint=replace(
            config.checkpoint,
            every_steps=every,
            # Keep this checkpoint although later checkpoints are saved during and after the decay.
            keep=max(config.checkpoint.keep, decay // every + 2),
        ),
    )


def _require_field(config: TrainConfig, values: dict[str, Any], field: str) -> None:
    if renamed := renamed_path(config, field.split(".")):
        raise UserError(f"axis {field} is now named {renamed}.")
    section: Any = values
    for part in field.split("."):
        known = _children(section)
        if part not in known:
            raise UserError(
                f"axis {field}: the config has no such field{did_you_mean(part, list(known))}"
            )
        section = known[part]


def _children(section: Any) -> dict[str, Any]:
    """Return the fields of a config section by name, or the entries of a list by index.

    The dict is empty for a value without fields or entries.
    """
    if isinstance(section, list):
        return {str(index): entry for index, entry in enumerate(section)}
    return section if isinstance(section, dict) else {}


def _set(values: dict[str, Any], field: str, value: Value) -> None:
    *sections, last = field.split(".")
    section: Any = values
    for part in sections:
        section = _children(section)[part]
    if isinstance(section, list):
        section[int(last)] = value
    else:
        section[last] = value
