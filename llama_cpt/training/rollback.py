"""The return of a run to an earlier checkpoint after a spike."""

from collections.abc import Callable, Sequence
import logging

from etils import epath

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.errors import SaveError
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.config.schema import TrainConfig
from llama_cpt.runtime.distributed import broadcast_from_primary, is_primary
from llama_cpt.runtime.metrics import FILE, cut_back
from llama_cpt.training.cadence import is_checkpoint_step
from llama_cpt.training.first_state import FirstState
from llama_cpt.training.goodput import Goodput
from llama_cpt.training.spike_report import describe_spikes
from llama_cpt.training.spikes import Spike, SpikeMonitor

logger = logging.getLogger(__name__)


def roll_back(
    config: TrainConfig,
    spike: Spike,
    monitor: SpikeMonitor,
    checkpoints: CheckpointManager,
    clock: Goodput,
    restart: Callable[[], FirstState],
    first_step: int = 0,
) -> tuple[FirstState, SpikeMonitor]:
    """Return the state and the monitor with which the run continues after ``spike``.

    Removes the checkpoints and the metrics of the steps that are taken back. ``restart`` restores
    the newest checkpoint that remains, or the state at the start of the run, which is at
    ``first_step``. Raises DivergedError if no remaining checkpoint is old enough.
    """
    try:
        checkpoints.wait()
    except SaveError as error:
        if not error.transient or error.local_only:
            raise
        # The state to be saved is taken back.
        logger.warning("%s", error)
    target = verified_target(config, checkpoints, spike.step, first_step)
    if target < 0:
        raise DivergedError(
            f"{spike}, and no checkpoint is at least spikes.rollback_steps="
            f"{config.spikes.rollback_steps} steps older."
        )
    checkpoints.discard_after(target)
    clock.count_as_repeated((spike.step - target) / spike.step)
    if is_primary():
        metrics = epath.Path(config.output) / FILE
        cut_back(metrics, metrics, target or -1)
    start = restart()
    monitor = monitor.rolled_back(spike, start.saved, start.step)
    if is_primary():
        logger.warning(
            "%s; the run returns to step %d and does not use the rows since then again.",
            spike,
            start.step,
        )
    describe_spikes(start.run, start.state.model, monitor)
    return start, monitor


def verified_target(
    config: TrainConfig, checkpoints: CheckpointManager, spike_step: int, first_step: int
) -> int:
    """Return the step to return to, whose checkpoint was verified, or -1 without one.

    Every process must call this function, because all processes verify a checkpoint together.
    """
    damaged: set[int] = set()
    while True:
        saved = {step: every for step, every in _intervals(checkpoints) if step not in damaged}
        regular = [step for step, every in saved.items() if step % every == 0]
        shortest = min([config.checkpoint.every_steps, *saved.values()])
        target = _target(regular, spike_step - config.spikes.rollback_steps, first_step, shortest)
        if damaged and target == first_step:
            # The run must not lose all of its steps because a checkpoint is damaged.
            target = None
        target = broadcast_from_primary(-1 if target is None else target, "step to return to")
        if target in (-1, first_step) or checkpoints.is_verified(target):
            return target
        damaged.add(target)


def _intervals(checkpoints: CheckpointManager) -> list[tuple[int, int]]:
    """Return the step of each checkpoint, and the interval of the config in the checkpoint.

    The interval can change when a run resumes. A checkpoint whose step is not a multiple of the
    interval was saved because of a stop signal. It is not considered, so that an interruption does
    not change the result of a rollback.
    """
    configs = [(step, checkpoints.metadata(step)["config"]) for step in checkpoints.steps()]
    return [(step, config["checkpoint"]["every_steps"]) for step, config in configs]


def _target(regular: Sequence[int], latest: int, first_step: int, every: int) -> int | None:
    """Return the step to return to, or None if the checkpoint that is needed does not exist.

    ``regular`` contains the steps of the checkpoints at regular intervals, ``latest`` is the newest
    step that is old enough, and ``every`` is the shortest interval.
    """
    old_enough = [step for step in regular if step <= latest]
    if old_enough:
        return old_enough[-1]
    return first_step if latest < (first_step // every + 1) * every else None


def needed_checkpoints(config: TrainConfig, steps: Sequence[int]) -> list[int]:
    """Return the steps of the checkpoints to which a later rollback can return.

    ``steps`` contains the steps of all checkpoints in ascending order, at least one.
    """
    regular = [step for step in steps if is_checkpoint_step(config, step)]
    latest = steps[-1] + 1 - config.spikes.rollback_steps
    oldest = _target(regular, latest, 0, config.checkpoint.every_steps)
    # Without an old one, checkpoints of an earlier interval can be needed.
    return [step for step in regular if step >= oldest] if oldest else list(steps)
