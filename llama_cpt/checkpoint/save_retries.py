"""Saving checkpoints with retries after transient storage errors."""

import logging
import time
from typing import Any

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.errors import SaveError
from llama_cpt.runtime import retry
from llama_cpt.runtime.distributed import is_primary

logger = logging.getLogger(__name__)


def save_with_retries(
    checkpoints: CheckpointManager,
    step: int,
    state: Any,
    metadata: dict[str, Any],
    *,
    wait: bool = False,
) -> None:
    """Save ``state`` as ``CheckpointManager.save`` does, and mark its health as unproven.

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
