"""Saves with retries after transient storage errors."""

import sys
import time
from typing import Any

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.errors import SaveError
from llama_cpt.runtime import retry
from llama_cpt.runtime.distributed import is_primary


def save_with_retries(
    checkpoints: CheckpointManager,
    step: int,
    state: Any,
    metadata: dict[str, Any],
    *,
    wait: bool = False,
) -> None:
    """Save ``state``, in the background unless ``wait``; its health is unproven until judged.

    If a transient error ended this save or the previous one, print a warning and try again;
    training pauses meanwhile. Raises SaveError if the error is permanent, if the last attempt
    failed, or if the other processes cannot try again together with this one.
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
                retry_note = f"Step {step} is saved instead, in {pause:g} s."
                print(f"warning: {error} {retry_note}", file=sys.stderr)
            time.sleep(pause)
