"""Checks with a timeout that remote storage (``gs://`` or a mounted bucket) can be read or written.

Without a network or a permission, storage clients retry for minutes. These checks raise an error
after at most ``TIMEOUT_SECONDS``.
"""

from collections.abc import Callable
import contextlib
import os
import threading
from typing import Any, TypeVar
import uuid

import fsspec

from llama_cpt.runtime.errors import PREEMPTED, UserError, first_line
from llama_cpt.runtime.literal_paths import remote_storage, validate_path
from llama_cpt.runtime.retry import describes_transient, is_transient

TIMEOUT_SECONDS = 20.0
"""Timeout of a storage request in seconds."""
HUB = "hf://"
"""Prefix of the paths on the Hugging Face hub, such as ``hf://datasets/OWNER/NAME/FILE``."""
HUB_ACCESS = "set HF_TOKEN to a token of an account that has access to it"
"""The remedy for a private or gated data set on the hub."""

Result = TypeVar("Result")


class UnreachableError(UserError):
    """A transient storage error; launch scripts restart a job that fails with this error."""

    status = PREEMPTED


def storage_error(error: Exception, message: str) -> UserError:
    """Return an UnreachableError with ``message`` if ``error`` is transient, else a UserError."""
    transient = is_transient(error) or describes_transient(str(error))
    return (UnreachableError if transient else UserError)(message)


def check_reachable(path: str, *, pattern: bool = False) -> None:
    """Raise UserError if the storage of ``path`` does not answer or denies access.

    A missing file is not an error. Local paths are checked too, because all files in a broken mount
    of a bucket appear to be missing. If ``pattern`` is True, ``path`` can contain wildcards.
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
    """Raise UserError unless a file can be written to the remote ``folder`` and then removed."""

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
    except Exception as error:  # Each storage client has its own exception types.
        reason = first_line(error)
        if is_transient(error):
            raise UnreachableError(f"{path}: cannot be {done} now ({reason}).") from None
        raise UserError(
            f"{path}: cannot be {done} ({reason}); name another path, or {_access(path)}."
        ) from None


def _access(path: str) -> str:
    if path.startswith(HUB):
        return HUB_ACCESS
    return "give this machine's account access to it (`gcloud auth application-default login`)"


def call_with_timeout(path: str, request: Callable[[], Result]) -> Result:
    """Return the result of ``request()``; raise UnreachableError after ``TIMEOUT_SECONDS``.

    An exception that ``request`` raises is passed on to the caller.
    """
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, request()))
        except BaseException as error:
            outcome.append((False, error))

    # A daemon thread, because a client that still retries must not keep the process from exiting.
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
