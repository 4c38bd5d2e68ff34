"""The checkpoints in the output folder of a run: creation from weights, and opening."""

from typing import Any

from etils import epath

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import check_reachable

CHECKPOINTS_FOLDER = "checkpoints"
"""Name of the folder of checkpoints in a run's output folder."""


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
