"""Classification of errors as transient or permanent, and retries after transient errors."""

from collections.abc import Callable
import errno
import os
import time
from typing import TypeVar

RETRY_DELAYS = 1.0, 10.0, 60.0
"""Seconds to wait before the first, second and third retry."""

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
# Orbax's storage layer keeps the messages of the operating system, but not the error numbers. The
# last three messages are from gcsfs and TensorStore.
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
# Packages with their own error types. The name of the package identifies its errors without an
# import.
_REMOTE_CLIENTS = {"gcsfs", "aiohttp", "google", "huggingface_hub", "httpx", "httpx2"}
# Messages of the JAX runtime after a network or device failure, and of ArrayRecord after a failure
# of a bucket or a mount. Neither the type nor an error number identifies these errors.
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
    """Return whether ``error`` is an OSError or an error of a client of remote storage."""
    return isinstance(error, OSError) or is_client_error(error)


def is_client_error(error: Exception) -> bool:
    """Return whether ``error`` has a type of a client of remote storage."""
    return type(error).__module__.split(".")[0] in _REMOTE_CLIENTS


def is_permanent(error: Exception) -> bool:
    """Return whether a retry cannot fix ``error``, which a storage operation raised."""
    by_message = any(words in str(error) for words in _PERMANENT_WORDS)
    response = getattr(error, "response", None)
    status = getattr(error, "code", None) or getattr(response, "status_code", None)
    by_status = str(status) not in _TRANSIENT_STATUSES
    by_number = getattr(error, "errno", None) in _PERMANENT_NUMBERS
    return isinstance(error, _PERMANENT_TYPES) or by_number or by_message or by_status


def is_transient(error: Exception) -> bool:
    """Return whether ``error`` is a storage error that a retry can fix."""
    return is_storage_error(error) and not is_permanent(error)


def describes_transient(message: str) -> bool:
    """Return whether an error's message describes a transient failure.

    Use this function for errors of general types, such as RuntimeError, which can also have causes
    other than storage or the network.
    """
    return any(words in message for words in _TRANSIENT_WORDS)


def with_retries(work: Callable[[], Result]) -> Result:
    """Return the result of ``work()``, which is retried up to three times after transient errors.

    Raises the last error if all retries fail. An error that is not transient is raised at once.
    """
    for delay in RETRY_DELAYS:
        try:
            return work()
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(delay)
    return work()
