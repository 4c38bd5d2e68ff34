"""The checkpoints in the output folder of a run: saving, with retries, and opening."""

import logging
import time
from typing import Any

from etils import epath

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.errors import SaveError
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.runtime import retry
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import check_reachable

CHECKPOINTS_FOLDER = "checkpoints"
"""Name of the folder of checkpoints in a run's output folder."""
logger = logging.getLogger(__name__)


def save_weights(folder: str, model: Any, metadata: dict[str, Any]) -> None:
    """Save ``model``, without optimizer state, as the checkpoint of step 0 of a new run folder.

    Returns after the checkpoint is committed. Raises UserError if the folder already contains
    checkpoints or ``model`` is not finite.
    """
    with CheckpointManager(str(epath.Path(folder) / CHECKPOINTS_FOLDER)) as checkpoints:
        if checkpoints.steps():
            raise UserError(f"{folder} contains checkpoints already; name a different folder.")
        try:
            checkpoints.save(0, {"trained": model}, metadata)
        except DivergedError as error:
            raise UserError(f"{error} Download or export the weights again.") from error


def is_run_folder(folder: str) -> bool:
    """Return whether ``folder``, a path or ``gs://`` URL, contains a folder ``checkpoints``."""
    check_reachable(folder)
    return (epath.Path(folder).expanduser() / CHECKPOINTS_FOLDER).exists()


def open_run(folder: str, step: int | None = None) -> tuple[CheckpointManager, int]:
    """Return the checkpoints of a run, and the step of a checkpoint that was verified.

    ``folder`` is the run's output folder or checkpoint folder. The returned step is ``step`` if
    given, and otherwise the step of the newest undamaged checkpoint. Raises UserError if the
    checkpoint does not exist or is damaged.
    """
    path = epath.Path(folder)
    checkpoints = CheckpointManager(
        str(path / CHECKPOINTS_FOLDER if is_run_folder(folder) else path)
    )
    if step is None:
        step = checkpoints.latest_verified()
    elif step not in checkpoints.steps():
        raise UserError(
            f"{folder}: no checkpoint of step {step}; choose one of {checkpoints.steps()}."
        )
    elif not checkpoints.is_verified(step):
        raise UserError(
            f"{folder}: the checkpoint of step {step} is damaged; restore it from a copy, or "
            "choose a different step."
        )
    if step is None:
        raise UserError(f"{folder} contains no checkpoint; name the output folder of a run.")
    return checkpoints, step


def save_with_retries(
    checkpoints: CheckpointManager,
    step: int,
    state: Any,
    metadata: dict[str, Any],
    *,
    wait: bool = False,
) -> None:
    """Save ``state`` and mark its checkpoint as not yet known to be healthy.

    The save runs in the background unless ``wait`` is True. If this save or the previous save fails
    with a transient error, logs a warning, sleeps, and tries again. Raises SaveError if the error
    is permanent, if the last attempt fails, or if the other processes are waiting inside Orbax and
    cannot repeat the save. Raises DivergedError if ``state`` is not finite.
    """
    checkpoints.retention.expect(step)
    for pause in (*retry.RETRY_DELAYS, None):
        try:
            checkpoints.save(step, state, metadata)
            if wait:
                checkpoints.wait()
            return
        except SaveError as error:
            if pause is None or not error.transient or error.local_only:
                raise
            if is_primary():
                logger.warning("%s Step %d is saved instead, in %g s.", error, step, pause)
            time.sleep(pause)
