"""Transient and permanent errors of checkpoint storage."""

import errno
import os

from llama_cpt.runtime.errors import PREEMPTED, USER_ERROR, UserError, first_line
from llama_cpt.runtime.retry import is_permanent


class StorageError(UserError):
    """Error in reading or writing a checkpoint.

    ``transient`` is True if the same operation can succeed later.
    """

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient
        # The launch scripts restart a command that exits with the status of a preemption.
        self.status = PREEMPTED if transient else USER_ERROR


class SaveError(StorageError):
    """Error for a checkpoint that could not be saved."""

    local_only = False
    """True if this process alone failed, and the other processes wait for its part of the files."""


def save_error(folder: str, step: int, error: Exception, keep: int, kept: list[int]) -> SaveError:
    """Return a SaveError for ``step`` in ``folder``, with the cause and a remedy.

    ``keep`` is ``checkpoint.keep`` of the run. ``kept`` contains the steps of existing checkpoints.
    """
    full = os.strerror(errno.ENOSPC) in str(error)
    reason = "the disk is full" if full else first_line(error)
    smaller = " or decrease checkpoint.keep" if keep > 1 else ""
    remedy = f" Free disk space{smaller}." if full else ""
    return SaveError(
        f"{folder}: the checkpoint of step {step} was not saved: {reason}.{remedy} Earlier "
        f"checkpoints are unchanged (steps: {kept}).",
        transient=not is_permanent(error),
    )
