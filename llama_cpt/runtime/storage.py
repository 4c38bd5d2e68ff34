"""Checks of remote storage (``gs://``, or a mounted bucket) in bounded time.

Storage clients retry for minutes without a network or a permission; these checks report it at once.
"""

from collections.abc import Callable
import contextlib
import os
import threading
from typing import Any, TypeVar
import uuid

import fsspec

from llama_cpt.runtime.errors import PREEMPTED, UserError
from llama_cpt.runtime.literal_paths import remote_storage, validate_path
from llama_cpt.runtime.retry import describes_transient, is_transient

TIMEOUT_SECONDS = 20.0
"""Time after which a request counts as unanswered."""

Result = TypeVar("Result")


class UnreachableError(UserError):
    """An error of storage that may be transient, so that the command should be restarted."""

    status = PREEMPTED


def storage_error(error: Exception, message: str) -> UserError:
    """Return ``message`` as an UnreachableError if ``error`` is transient, else as a UserError."""
    transient = is_transient(error) or describes_transient(str(error))
    return (UnreachableError if transient else UserError)(message)


def check_reachable(path: str, *, pattern: bool = False) -> None:
    """Raise UserError if the storage of ``path`` does not answer or denies access.

    A missing file is not an error. A local path may be in a mounted bucket: if the mount is broken,
    everything in it would appear to be missing. ``pattern`` allows wildcards.
    """
    validate_path(path, pattern=pattern)

    def look(system: fsspec.AbstractFileSystem, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            system.info(name)

    if "://" in path:
        _try(path, "read", look)
        return
    try:
        os.stat(os.path.expanduser(path))
    except OSError as error:
        if describes_transient(str(error)):
            raise UnreachableError(f"{path}: cannot be read now ({error.strerror}).") from None


def check_remote_writable(folder: str) -> None:
    """Raise UserError if a file cannot be written to, and removed from, a remote ``folder``."""

    def write(system: fsspec.AbstractFileSystem, name: str) -> None:
        # Several processes check at the same time, and object stores limit writes to one name.
        draft = f"{name.rstrip('/')}/writable-{uuid.uuid4().hex}.draft"
        system.pipe_file(draft, b"")
        system.rm_file(draft)

    _try(folder, "written", write)


def _try(path: str, done: str, request: Callable[[fsspec.AbstractFileSystem, str], None]) -> None:
    try:
        call_with_timeout(path, lambda: request(*remote_storage(path)))
    except UserError:
        raise
    except Exception as error:  # Each storage client has its own types.
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        if is_transient(error):
            raise UnreachableError(f"{path}: cannot be {done} now ({reason}).") from None
        raise UserError(
            f"{path}: cannot be {done} ({reason}); name another path, or give this machine's "
            "account access to it (`gcloud auth application-default login`)."
        ) from None


def call_with_timeout(path: str, request: Callable[[], Result]) -> Result:
    """Return or raise what ``request`` does; raise UnreachableError after ``TIMEOUT_SECONDS``."""
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, request()))
        except BaseException as error:
            outcome.append((False, error))

    # A daemon thread, because a client that still retries must not keep the process from ending.
    thread = threading.Thread(target=run, daemon=True, name=f"request {path}")
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    if not outcome:
        raise UnreachableError(
            f"{path}: no answer within {TIMEOUT_SECONDS:.0f} s; check the network and whether this "
            "machine's account can read the bucket."
        )
    succeeded, value = outcome[0]
    if succeeded:
        return value
    raise value
