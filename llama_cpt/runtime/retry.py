"""Classification of errors as transient or permanent, and retries."""

from collections.abc import Callable
import errno
import os
import time
from typing import TypeVar

RETRY_DELAYS = 1.0, 10.0, 60.0
"""Seconds before each retry."""

_PERMANENT_NUMBERS = (
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
# Orbax's storage layer passes on the messages of the operating system, but not the error numbers;
# the last three are from gcsfs and TensorStore.
_PERMANENT_WORDS = (
    *map(os.strerror, _PERMANENT_NUMBERS),
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
# Packages whose errors are not OSErrors; recognized by name, without importing the package.
_REMOTE_CLIENTS = {"gcsfs", "aiohttp", "google"}
# Messages of the JAX runtime after a failure of the network or a device, and of ArrayRecord after
# one of a bucket or a mount: these errors have neither a type nor a number of their own.
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
    """Return whether ``error`` was raised by storage or the network."""
    client = type(error).__module__.split(".")[0]
    return isinstance(error, OSError) or client in _REMOTE_CLIENTS


def is_permanent(error: Exception) -> bool:
    """Return whether a retry would fail in the same way."""
    by_message = any(words in str(error) for words in _PERMANENT_WORDS)
    by_status = str(getattr(error, "code", None)) not in _TRANSIENT_STATUSES
    by_number = getattr(error, "errno", None) in _PERMANENT_NUMBERS
    return isinstance(error, _PERMANENT_TYPES) or by_number or by_message or by_status


def is_transient(error: Exception) -> bool:
    """Return whether ``error`` was raised by storage or the network, and a retry may succeed."""
    return is_storage_error(error) and not is_permanent(error)


def describes_transient(message: str) -> bool:
    """Return whether the message of an error describes a transient failure.

    It is for errors whose type does not show that they are from storage or the network.
    """
    return any(words in message for words in _TRANSIENT_WORDS)


def with_retries(work: Callable[[], Result]) -> Result:
    """Return ``work()``, retried up to three times after transient errors."""
    for delay in RETRY_DELAYS:
        try:
            return work()
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(delay)
    return work()
