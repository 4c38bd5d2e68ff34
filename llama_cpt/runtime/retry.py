"""Storage errors that may pass, and trying again."""

from collections.abc import Callable
import errno
import os
import time
from typing import TypeVar

RETRY_DELAYS = 1.0, 10.0, 60.0
"""Seconds before each new try."""

_LASTING_NUMBERS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
# In words: Orbax's storage layer has the system's words, but not its numbers; then gcsfs's word and
# TensorStore's.
_PERMANENT_WORDS = (
    *map(os.strerror, _LASTING_NUMBERS),
    "Forbidden",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
)
_PERMANENT_TYPES = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
# Whose errors are no OSErrors; their types are not imported for a look at them.
_REMOTE_CLIENTS = {"gcsfs", "aiohttp", "google"}
# What the runtime says where a network or a device has failed and not the program, and what a
# bucket, or a mounted one, tells ArrayRecord: their errors have neither type nor number.
_TRANSIENT_WORDS = (
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    *map(os.strerror, (errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT)),
    "status code: 429",
    "status code: 5",
)
_TRANSIENT_STATUSES = {"408", "429", "500", "502", "503", "504", "None"}

Result = TypeVar("Result")


def is_storage_error(error: Exception) -> bool:
    """Whether ``error`` came from storage or from the network."""
    client = type(error).__module__.split(".")[0]
    return isinstance(error, OSError) or client in _REMOTE_CLIENTS


def is_permanent(error: Exception) -> bool:
    """Whether a new try of the same would end the same."""
    told = any(words in str(error) for words in _PERMANENT_WORDS)
    answered = str(getattr(error, "code", None)) not in _TRANSIENT_STATUSES
    numbered = getattr(error, "errno", None) in _LASTING_NUMBERS
    return isinstance(error, _PERMANENT_TYPES) or numbered or told or answered


def is_transient(error: Exception) -> bool:
    """Whether ``error`` came from storage or the network, and a new try may go well."""
    return is_storage_error(error) and not is_permanent(error)


def describes_transient(words: str) -> bool:
    """Whether ``words``, of an error that is not storage's by its type, tell of what may pass."""
    return any(passing in words for passing in _TRANSIENT_WORDS)


def with_retries(work: Callable[[], Result]) -> Result:
    """``work()``, begun again after an error that passes, up to three times."""
    for pause in RETRY_DELAYS:
        try:
            return work()
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(pause)
    return work()
