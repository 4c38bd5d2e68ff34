"""Storage errors that may pass, and trying again."""

from collections.abc import Callable
import errno
import os
import time
from typing import TypeVar

PAUSES = 1.0, 10.0, 60.0
"""Seconds before each new try."""

# In words: Orbax's storage layer has the system's words, but not its numbers.
_LASTING = tuple(
    os.strerror(number)
    for number in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
    )
)

Result = TypeVar("Result")


def passes(error: Exception) -> bool:
    """Whether a new try may go well."""
    return not any(words in str(error) for words in _LASTING)


def patiently(work: Callable[[], Result]) -> Result:
    """``work()``, begun again after an OSError that may pass, up to three times."""
    for pause in PAUSES:
        try:
            return work()
        except OSError as error:
            if not passes(error):
                raise
            time.sleep(pause)
    return work()
