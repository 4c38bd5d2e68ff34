"""The trials of a sweep: a config each, a name made of its values, what it shares with others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
import itertools
from typing import Any

import numpy as np
from scipy.stats import qmc

from llama_cpt.config.fields import did_you_mean, from_dict, to_dict
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


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    config: TrainConfig
    size: str
    """Of its model; "" where the sweep has one."""
    parent: "Trial | None" = None
    """The trial of the next smaller token budget, whose stable phase this one goes on from."""

    @property
    def stable_steps(self) -> int:
        """Steps before the decay, which a larger budget's trial need not do again."""
        return self.config.num_steps - self.config.optimizer.decay_steps

    @property
    def first_step(self) -> int:
        """Where its own steps begin."""
        return self.parent.stable_steps if self.parent else 0

    @property
    def own_tokens(self) -> int:
        """Trained on by this trial itself."""
        return (self.config.num_steps - self.first_step) * tokens_per_step(self.config)


BudgetChain = tuple[Trial, ...]
"""Trials that differ in their token budget alone: done in this order, by one worker."""

Point = dict[str, tuple[str, Value]]
"""Field -> its value's name, its value."""


def make_chains(sweep: SweepConfig) -> list[BudgetChain]:
    """All trials, those of one size together.

    Raises UserError for an axis whose field is unknown or does not take its values.
    """
    values = to_dict(sweep.train)
    for axis in sweep.axes:
        _require_field(values, axis.field)
    sizes = sweep.sizes or (SizeConfig("", sweep.train.model, sweep.train.init_from),)
    points, ridge = _points(sweep), _ridge(sweep.law)
    chains = [_chain(sweep, size, point, ridge) for size in sizes for point in points]
    names = [trial.name for chain in chains for trial in chain]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two trials are named {name}: give the axes' values names.")
    return chains


def tokens_per_step(config: TrainConfig) -> int:
    """Row tokens."""
    return config.global_batch_size * config.data.sequence_length


def mean_almr(config: TrainConfig) -> Fraction:
    """Asked share of additional tokens over the whole run, its stages together."""
    stages = [*config.data.almr_stages(), (config.num_steps, Fraction(0))]
    parts = [
        (min(until, config.num_steps) - min(start, config.num_steps)) * almr
        for (start, almr), (until, _) in itertools.pairwise(stages)
    ]
    return sum(parts, Fraction(0)) / config.num_steps


def mixture_order(config: TrainConfig) -> str:
    """``interleaved`` at one ratio, ``block`` where each stage is of one group, else ``staged``."""
    shares = [almr for step, almr in config.data.almr_stages() if step < config.num_steps]
    if len(shares) == 1:
        return "interleaved"
    return "block" if set(shares) <= {0, 1} else "staged"


def _points(sweep: SweepConfig) -> list[Point]:
    """Cells, times Sobol points, times the grid of the other axes."""
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
    # In the order of the axes, which trials' names follow.
    order = [
        *((ALMR_FIELD, LEARNING_RATE_FIELD) if sweep.cells else ()),
        *(axis.field for axis in sweep.axes),
    ]
    return [{field: point[field] for field in order} for point in found]


def _sobol_points(
    axes: Sequence[AxisConfig], sweep: SweepConfig
) -> list[tuple[tuple[str, tuple[str, Value]], ...]]:
    """Scrambled Sobol points, in as few digits as tell them apart, always the same for a seed."""
    if not axes:
        return [()]
    sampler = qmc.Sobol(len(axes), rng=np.random.default_rng(sweep.train.seed))
    # Balanced for powers of two alone; the first ones of more are taken.
    unit = sampler.random_base2(max(sweep.points - 1, 1).bit_length())[: sweep.points]
    columns = [_stretched(unit[:, place], axis) for place, axis in enumerate(axes)]
    names: list[tuple[str, ...]] = []
    for digits in range(3, 18):
        told = [[f"{number:.{digits}g}" for number in column] for column in columns]
        names = list(zip(*told, strict=True))
        if len(set(names)) == len(names):
            break
    return [
        tuple((axis.field, (name, float(name))) for axis, name in zip(axes, row, strict=True))
        for row in names
    ]


def _stretched(unit: np.ndarray, axis: AxisConfig) -> np.ndarray:
    low, high = axis.between
    return low * (high / low) ** unit if axis.scale == "log" else low + unit * (high - low)


def _names(axis: AxisConfig) -> tuple[str, ...]:
    return axis.names or tuple(_name(value) for value in axis.values)


def _name(value: Value) -> str:
    if isinstance(value, tuple):
        return "_".join(f"{share:g}_from_{step}" for step, share in value)
    return f"{value:g}" if isinstance(value, float) else str(value).replace("/", "_")


def _ridge(law: str) -> OptimalRate | None:
    """The learning rates that ``law`` finds best."""
    if not law:
        return None
    if (ridge := load_law(law).optimal_rate) is None:
        raise UserError(f"{law} has no best learning rate for each ALMR: it was refused.")
    return ridge


def _best_rate(ridge: OptimalRate, almr: float) -> float:
    """Between the ratios that the law tells, on the logarithm; at its ends what it says there."""
    return float(np.exp(np.interp(almr, ridge.almr, np.log(ridge.learning_rate.value))))


def _chain(
    sweep: SweepConfig, size: SizeConfig, point: Point, ridge: OptimalRate | None
) -> BudgetChain:
    values = to_dict(replace(sweep.train, model=size.model, init_from=size.init_from))
    parts = [size.name] if size.name else []
    for field, (name, value) in point.items():
        _set(values, field, value)
        parts.append(f"{field.rsplit('.', 1)[-1]}_{name}")
    stem = "-".join(parts) or "trial"
    # Through from_dict, which holds every value to its field's type and names the field.
    config = from_dict(TrainConfig, values, f"trial {stem}")
    if ridge:
        rates = config.optimizer
        best = _best_rate(ridge, float(mean_almr(config)))
        rates = replace(rates, peak_learning_rate=float(f"{rates.peak_learning_rate * best:.3g}"))
        config = replace(config, optimizer=rates)
    if not sweep.token_budgets:
        return (Trial(stem, replace(config, output=f"{sweep.output}/{stem}"), size.name),)
    chain: list[Trial] = []
    for tokens in sweep.token_budgets:
        last = tokens == sweep.token_budgets[-1]
        name = f"{stem}-tokens_{tokens}"
        trial = replace(_of_length(config, tokens, sweep), output=f"{sweep.output}/{name}")
        trunk = chain[-1] if chain else None
        chain.append(Trial(name, trial if last else _saved_stable(trial), size.name, trunk))
    return tuple(chain)


def _of_length(config: TrainConfig, tokens: int, sweep: SweepConfig) -> TrainConfig:
    steps = -(-tokens // tokens_per_step(config))
    optimizer = config.optimizer
    if optimizer.schedule == "wsd":
        optimizer = replace(optimizer, decay_steps=max(round(steps * sweep.decay_fraction), 1))
    return replace(config, num_steps=steps, optimizer=optimizer)


def _saved_stable(config: TrainConfig) -> TrainConfig:
    """With a checkpoint where the decay begins, which stays: the next budget takes over there.

    Checkpoints are spaced evenly up to it, so it may begin a step or two early.
    """
    stable = config.num_steps - config.optimizer.decay_steps
    if stable < 1:
        raise UserError(
            f"token_budgets: the smallest is {config.num_steps} steps, too few for a stable phase "
            "and a decay."
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
            keep=max(config.checkpoint.keep, decay // every + 2),
        ),
    )


def _require_field(values: dict[str, Any], field: str) -> None:
    section: Any = values
    for part in field.split("."):
        known = _named(section)
        if part not in known:
            raise UserError(
                f"axis {field}: the config has no such field{did_you_mean(part, list(known))}"
            )
        section = known[part]


def _named(section: Any) -> dict[str, Any]:
    """What lies below: fields by name, entries of a tuple by place."""
    if isinstance(section, list):
        return {str(place): entry for place, entry in enumerate(section)}
    return section if isinstance(section, dict) else {}


def _set(values: dict[str, Any], field: str, value: Value) -> None:
    *sections, last = field.split(".")
    section: Any = values
    for part in sections:
        section = _named(section)[part]
    if isinstance(section, list):
        section[int(last)] = value
    else:
        section[last] = value
