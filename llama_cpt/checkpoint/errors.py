"""Errors of checkpoint storage, transient or permanent."""

import errno
import os

from llama_cpt.runtime.errors import PREEMPTED, USER_ERROR, UserError
from llama_cpt.runtime.retry import is_permanent


class StorageError(UserError):
    """Error of the storage of a checkpoint; ``transient`` if another attempt may succeed."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient
        # A scheduler restarts a command that ends with the status of a preemption.
        self.status = PREEMPTED if transient else USER_ERROR


class SaveError(StorageError):
    """Error for a checkpoint that could not be saved."""

    local_only = False
    """Whether only this process failed while the others wait for its share of the save."""


def save_error(folder: str, step: int, error: Exception, keep: int, kept: list[int]) -> SaveError:
    """Return the error of the save of ``step`` in ``folder``, with its cause and remedy.

    ``keep`` is the number of checkpoints that the run keeps, ``kept`` the steps that are left.
    """
    full = os.strerror(errno.ENOSPC) in str(error)
    reason = "the disk is full" if full else (str(error).splitlines() or [repr(error)])[0]
    smaller = " or set a smaller checkpoint.keep" if keep > 1 else ""
    remedy = f" Free some space{smaller}." if full else ""
    return SaveError(
        f"{folder}: the checkpoint of step {step} was not saved: {reason}.{remedy} Earlier "
        f"checkpoints are untouched (steps: {kept}).",
        transient=not is_permanent(error),
    )
