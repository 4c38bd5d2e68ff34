"""Saves that outlast a storage error which passes."""

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
    about: dict[str, Any],
    *,
    wait: bool = False,
) -> None:
    """Save ``state``, in the background unless ``wait``; its health is unproven until judged.

    Where this save or the one before was ended by what may pass, tell and try again; training
    pauses for it. Raises SaveError for what does not pass, or has not passed by the last try, and
    where the other processes cannot try again with this one.
    """
    checkpoints.retention.expect(step)
    for pause in (*retry.RETRY_DELAYS, None):
        try:
            checkpoints.save(step, state, about)
            if wait:
                checkpoints.wait()
            return
        except SaveError as error:
            if pause is None or not error.transient or error.local_only:
                raise
            if is_primary():
                told = f"warning: {error} Step {step} is saved instead, in {pause:g} s."
                print(told, file=sys.stderr)
            time.sleep(pause)
