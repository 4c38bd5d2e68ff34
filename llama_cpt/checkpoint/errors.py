"""Why a checkpoint was not saved or not read, and whether that may pass."""

import errno
import os

from llama_cpt.runtime.errors import PREEMPTED, USER_ERROR, UserError
from llama_cpt.runtime.retry import is_permanent


class StorageError(UserError):
    """Storage failed a checkpoint; ``passing`` where trying again may help."""

    def __init__(self, told: str, *, passing: bool) -> None:
        super().__init__(told)
        self.transient = passing
        # What passes is worth a new start.
        self.status = PREEMPTED if passing else USER_ERROR


class SaveError(StorageError):
    """A checkpoint could not be saved."""

    local_only = False
    """Whether the other processes do not know, and wait for this one's share of the save."""


def save_error(place: str, step: int, error: Exception, keep: int, kept: list[int]) -> SaveError:
    """What to tell of ``error``, which ended the save of ``step`` in ``place``."""
    full = os.strerror(errno.ENOSPC) in str(error)
    reason = "the disk is full" if full else (str(error).splitlines() or [repr(error)])[0]
    smaller = " or set a smaller checkpoint.keep" if keep > 1 else ""
    remedy = f" Free some space{smaller}." if full else ""
    return SaveError(
        f"{place}: the checkpoint of step {step} was not saved: {reason}.{remedy} Earlier "
        f"checkpoints are untouched (steps: {kept}).",
        passing=not is_permanent(error),
    )
