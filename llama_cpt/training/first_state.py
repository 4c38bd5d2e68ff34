"""The first state of a run: restored from a checkpoint, or new."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import logging
from typing import Any, NamedTuple

from etils import epath

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.evaluation import evaluate
from llama_cpt.training.forgetting import ForgettingAlarm
from llama_cpt.training.resume import check_fingerprints, check_resume
from llama_cpt.training.run import Run
from llama_cpt.training.spikes import METADATA, SpikeMonitor
from llama_cpt.training.train_step import TrainState, donatable
from llama_cpt.weights.lora_base_check import read_lora_base

EVALUATION_PENDING = "evaluation_pending"
"""Key in the metadata of a checkpoint whose evaluation was ended by a signal."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BranchPoint:
    """A checkpoint from which a new run continues, saved by a different run.

    The configs of the two runs may differ only in ``num_steps``, ``optimizer.decay_steps`` and the
    fields that may change when a run resumes.
    """

    output: str
    """Output folder of the run that saved the checkpoint."""
    step: int
    """Step of the checkpoint. The learning rate must not have decayed before this step."""


class FirstState(NamedTuple):
    """The state in which training starts or continues."""

    run: Run
    """The run with the settings in the checkpoint."""
    state: TrainState
    step: int
    """Number of steps done."""
    saved: dict[str, Any]
    """Metadata of the checkpoint; empty for a new state."""
    unevaluated: bool = False
    """True for a new state, and if a signal ended the evaluation of the state before its end."""


def first_state(
    run: Run,
    checkpoints: CheckpointManager,
    allow_change: Sequence[str] | None,
    branch_point: BranchPoint | None,
) -> FirstState:
    """Return the state in which ``run`` starts.

    If ``allow_change`` is None, the process has already accepted the config of ``run``, and the
    checkpoint can have an earlier one.

    The state is restored from the run's newest checkpoint. Without a checkpoint, the state is
    restored from ``branch_point`` if given, and is otherwise new.
    """
    if step := find_resume_step(run, checkpoints, allow_change):
        saved = checkpoints.metadata(step)
        run = run.resumed(saved)
        saved = _with_comparable_base(run, saved)
        unevaluated = EVALUATION_PENDING in saved and step in run.evaluations.steps
        return FirstState(run, restore_state(run, checkpoints, step), step, saved, unevaluated)
    if branch_point:
        return _restore_branch_point(run, branch_point)
    return FirstState(run, run.start(), 0, {}, unevaluated=True)


def find_resume_step(
    run: Run, checkpoints: CheckpointManager, allow_change: Sequence[str] | None
) -> int:
    """Return the step of the newest undamaged checkpoint, or 0 if there is no checkpoint.

    Raises UserError if the checkpoint's config or data differ from those of ``run`` in a way that
    neither ``FieldTraits.on_resume`` nor ``allow_change`` permits. If ``allow_change`` is None,
    they are not compared.
    """
    step = checkpoints.latest_verified()
    if step is None:
        return 0
    saved = checkpoints.metadata(step)
    if allow_change is not None:
        batches = _batches_used(run, saved, step)
        for warning in check_resume(saved["config"], run.config, allow_change, step, batches):
            if is_primary():
                logger.warning("resume: %s", warning)
        check_fingerprints(saved["fingerprints"], run.fingerprints, allow_change)
    done = step == run.config.num_steps
    message = f"all {step} steps are done; increase num_steps to continue"
    if is_primary():
        resuming = f"resuming after step {step}"
        logger.info("%s: %s", run.config.output, message if done else resuming)
    checkpoints.retention.expect(step)
    return step


def _batches_used(run: Run, saved: dict[str, Any], step: int) -> int:
    """Return the number of batches of rows that the run has used or passed over after ``step``."""
    rows = run.config.global_batch_size
    monitor = SpikeMonitor(run.config.spikes, rows, saved.get(METADATA))
    return -(-monitor.rows_before(step) // rows)


def restore_state(run: Run, checkpoints: CheckpointManager, step: int) -> TrainState:
    """Return the state in the checkpoint of ``step``.

    For LoRA, the state includes the frozen base model, which is loaded from ``init_from``.
    Raises UserError if the base model differs from the model with which the adapters were trained.
    """
    shapes, mesh = run.program.state_shapes.checkpointed, run.program.mesh
    state = donatable(checkpoints.restore(step, shapes), mesh)
    if base := read_lora_base(checkpoints.metadata(step), run.config.output):
        with base.error_context(run.config.output):
            state = replace(state, frozen=donatable(run.frozen(), mesh))
            base.require_all(state.frozen)
    return state


def _with_comparable_base(run: Run, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata ``saved`` with a base of the forgetting alarm for the present samples.

    If the evaluated documents of a watched corpus have changed, its values before the first step
    are measured again with the initial weights.
    """
    alarm = ForgettingAlarm(run.config, run.heldout_samples, saved)
    if not alarm.without_base:
        return saved
    if is_primary():
        logger.warning(
            "forgetting: the run has no bits per byte before the first step for the present "
            "held-out documents of %s; they are measured now with the initial weights.",
            ", ".join(alarm.without_base),
        )
    # Nothing holds the initial state, so that its memory is free when the state is restored.
    try:
        results = evaluate(run, run.start())
    except UserError as error:
        raise UserError(f"{error} Or set forgetting.action to none.") from error
    alarm.measure_again({name: result.bits_per_byte for name, result in results.items()})
    return saved | alarm.metadata()


def _restore_branch_point(run: Run, branch_point: BranchPoint) -> FirstState:
    """Return the state in the checkpoint ``branch_point``.

    Raises UserError if the checkpoint is missing or damaged, or if its config or data do not allow
    ``run`` to continue from it.
    """
    step = branch_point.step
    with CheckpointManager(
        str(epath.Path(branch_point.output) / CHECKPOINTS_FOLDER)
    ) as checkpoints:
        if step not in checkpoints.steps() or not checkpoints.is_verified(step):
            raise UserError(
                f"{branch_point.output} has no undamaged checkpoint of step {step}; delete that "
                "folder to train the run again."
            )
        saved = checkpoints.metadata(step)
        batches = _batches_used(run, saved, step)
        check_resume(saved["config"], run.config, ("optimizer.decay_steps",), step, batches)
        check_fingerprints(saved["fingerprints"], run.fingerprints)
        saved = _with_comparable_base(run, saved)
        return FirstState(run, restore_state(run, checkpoints, step), step, saved)
