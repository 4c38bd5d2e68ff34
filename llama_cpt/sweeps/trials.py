"""The trials of a sweep: their configs, names and shared stable phases."""

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


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    config: TrainConfig
    size: str
    """The name of its model size; "" if the sweep has one size."""
    parent: "Trial | None" = None
    """The trial of the next smaller token budget, whose stable phase this one continues."""

    @property
    def stable_steps(self) -> int:
        """Number of steps before the decay, which the trial of a larger budget shares."""
        return self.config.num_steps - self.config.optimizer.decay_steps

    @property
    def first_step(self) -> int:
        """Number of steps that the parent has trained already."""
        return self.parent.stable_steps if self.parent else 0

    @property
    def own_tokens(self) -> int:
        """Number of row tokens that this trial trains on itself."""
        return (self.config.num_steps - self.first_step) * tokens_per_step(self.config)


BudgetChain = tuple[Trial, ...]
"""Trials that differ only in their token budget, run in this order by one worker."""

Point = dict[str, tuple[str, Value]]
"""A point of the grid: field -> (name of the value, value)."""


def make_chains(sweep: SweepConfig) -> list[BudgetChain]:
    """Return all trials in chains, those of one size together, so that they share a compilation.

    Raises UserError if the field of an axis is unknown or does not accept a value.
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
    """Return the number of row tokens per step."""
    return config.global_batch_size * config.data.sequence_length


def mean_almr(config: TrainConfig) -> Fraction:
    """Return the target share of additional tokens over the whole run, all stages together."""
    stages = [*config.data.almr_stages(), (config.num_steps, Fraction(0))]
    parts = [
        (min(until, config.num_steps) - min(start, config.num_steps)) * almr
        for (start, almr), (until, _) in itertools.pairwise(stages)
    ]
    return sum(parts, Fraction(0)) / config.num_steps


def mixture_order(config: TrainConfig) -> str:
    """Return ``interleaved`` (one ratio), ``block`` (one group per stage) or ``staged``."""
    shares = [almr for step, almr in config.data.almr_stages() if step < config.num_steps]
    if len(shares) == 1:
        return "interleaved"
    return "block" if set(shares) <= {0, 1} else "staged"


def _points(sweep: SweepConfig) -> list[Point]:
    """Return all points: cells times Sobol points times the grid of the other axes."""
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
    # Trial names list the fields in the order of the axes.
    order = [
        *((ALMR_FIELD, LEARNING_RATE_FIELD) if sweep.cells else ()),
        *(axis.field for axis in sweep.axes),
    ]
    return [{field: point[field] for field in order} for point in found]


def _sobol_points(
    axes: Sequence[AxisConfig], sweep: SweepConfig
) -> list[tuple[tuple[str, tuple[str, Value]], ...]]:
    """Return scrambled Sobol points, fixed by the seed, in as few digits as keep them distinct."""
    if not axes:
        return [()]
    sampler = qmc.Sobol(len(axes), rng=np.random.default_rng(sweep.train.seed))
    # Sobol points are balanced for powers of two only, so draw the next one and take the first.
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
    """Return the optimal learning rate per ALMR from the law's file, None without a law."""
    if not law:
        return None
    if (optimal := load_law(law).optimal_rate) is None:
        raise UserError(
            f"{law} has no optimal learning rate per ALMR: the law was refused; set another law."
        )
    return optimal


def _rate_at(optimal: OptimalRate, almr: float) -> float:
    """Return the optimal rate at ``almr``, interpolated in its logarithm, constant outside."""
    return float(np.exp(np.interp(almr, optimal.almr, np.log(optimal.learning_rate.value))))


def _chain(
    sweep: SweepConfig, size: SizeConfig, point: Point, optimal: OptimalRate | None
) -> BudgetChain:
    """Return the trials of one point and size, one per token budget."""
    values = to_dict(replace(sweep.train, model=size.model, init_from=size.init_from))
    parts = [size.name] if size.name else []
    for field, (name, value) in point.items():
        _set(values, field, value)
        parts.append(f"{field.rsplit('.', 1)[-1]}_{name}")
    stem = "-".join(parts) or "trial"
    # from_dict checks every value against its field's type and names the field in errors.
    config = from_dict(TrainConfig, values, f"trial {stem}")
    if optimal:
        # With a law, the axis of the learning rate holds multiples of the optimal rate.
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
    """Return ``config`` with a kept checkpoint at the start of the decay, for the next budget.

    Checkpoints are evenly spaced up to it, so the decay may start a step or two early.
    """
    stable = config.num_steps - config.optimizer.decay_steps
    if stable < 1:
        raise UserError(
            f"token_budgets: the smallest is {config.num_steps} steps, too few for a stable phase "
            "and a decay; raise it."
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
            # The checkpoints of the decay and the final one must not displace it.
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
    """Return the fields of a section by name, or the entries of a tuple by index."""
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
