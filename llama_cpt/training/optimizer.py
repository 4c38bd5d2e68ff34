"""AdamW, and learning-rate schedules that are computed on the host."""

from collections.abc import Mapping
import math
from typing import Any

from flax import nnx
import jax
import optax

from llama_cpt.config.schema import OptimizerConfig
from llama_cpt.runtime.errors import UserError

SCHEDULE_VERSION = 2
"""Version of the schedules. Checkpoints contain the version with which their run started.

In version 1, the first decay step of ``cosine`` and ``linear`` had a rate below the peak.
"""


def learning_rate(
    config: OptimizerConfig, step: int, num_steps: int, version: int = SCHEDULE_VERSION
) -> float:
    """Return the learning rate of step number ``step``, counted from 0.

    Warm-up is linear from ``initial_learning_rate`` and ends on step ``warmup_steps``, which has
    the peak rate. The schedules ``cosine`` and ``linear`` decay from the peak on step
    ``warmup_steps`` to the final rate on the last step. The schedule ``wsd`` has the peak rate
    until its last ``decay_steps`` steps, in which it decays to the final rate. The rate depends
    only on the arguments, so a resumed run uses the same rates as an uninterrupted run. ``version``
    is the ``SCHEDULE_VERSION`` with which the run started.
    """
    peak, final = config.peak_learning_rate, config.final_learning_rate_fraction
    if step < config.warmup_steps:
        done = (step + 1) / (config.warmup_steps + 1)
        return config.initial_learning_rate + (peak - config.initial_learning_rate) * done
    decay_steps = (
        config.decay_steps if config.schedule == "wsd" else num_steps - config.warmup_steps
    )
    decayed = step - (num_steps - decay_steps)
    if config.schedule == "wsd" or version == 1:
        # The step before the decay has the peak rate.
        done = (decayed + 1) / max(decay_steps, 1)
    else:
        done = decayed / max(decay_steps - 1, 1)
    done = min(max(done, 0.0), 1.0)
    match config.schedule:
        case "constant":
            return peak
        case "cosine":
            return peak * (final + (1 - final) * (1 + math.cos(math.pi * done)) / 2)
        case "linear" | "wsd":
            return peak * (1 - (1 - final) * done)


def check_schedule(config: OptimizerConfig, num_steps: int) -> None:
    """Raise UserError if warm-up and decay together are longer than ``num_steps``.

    Also raises UserError if the schedule ``wsd`` has no decay steps.
    """
    decay_steps = config.decay_steps if config.schedule == "wsd" else 0
    if config.schedule == "wsd" and decay_steps < 1:
        raise UserError(
            f"optimizer.decay_steps is {decay_steps}; optimizer.schedule=wsd requires at least 1."
        )
    if config.warmup_steps + decay_steps > num_steps:
        raise UserError(
            f"optimizer.warmup_steps={config.warmup_steps} and optimizer.decay_steps={decay_steps} "
            f"do not fit into num_steps={num_steps}; decrease them or increase num_steps."
        )


def saved_schedule_version(metadata: Mapping[str, Any]) -> int:
    """Return the ``SCHEDULE_VERSION`` in the ``metadata`` of a checkpoint, by default 1.

    Raises UserError if the version is unknown.
    """
    version = metadata.get("schedule_version", 1)
    if version not in range(1, SCHEDULE_VERSION + 1):
        raise UserError(
            f"the checkpoint has the learning-rate schedule of version {version!r}, but this "
            f"program has versions 1 to {SCHEDULE_VERSION}; resume with the program that wrote it."
        )
    return version


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return AdamW (arXiv 1711.05101) with gradient clipping and without a learning rate.

    The training step multiplies the updates by the learning rate, which is an argument of the
    compiled program.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
    )


def decay_mask(model: Any) -> Any:
    """Return a tree like ``model`` with True for each matrix and False for each norm scale.

    Weight decay applies only to the parameters with True.
    """
    return jax.tree.map(
        lambda parameter: "norm" not in parameter.get_metadata("axes"),
        model,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )
