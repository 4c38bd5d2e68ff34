"""Remote places (``gs://``, or mounted) that answer in bounded time, or are an error.

Storage clients try again for minutes where there is no network or no right; a user should know at
once.
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

Result = TypeVar("Result")


class UnreachableError(UserError):
    """Storage failed in a way that may pass: worth a new start."""

    status = PREEMPTED


def storage_error(error: Exception, told: str) -> UserError:
    """``told`` of what ``error`` ended, as UnreachableError where that may pass."""
    passing = is_transient(error) or describes_transient(str(error))
    return (UnreachableError if passing else UserError)(told)


def check_reachable(path: str, *, pattern: bool = False) -> None:
    """Raise UserError where the storage of ``path`` does not answer, or denies a remote one.

    That nothing lies there is no error. A local path may lie in a bucket that is mounted: where the
    mount has broken, all in it would seem to be absent. ``pattern`` allows wildcards.
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
    """Raise UserError where nothing can be written to, and removed from, a remote ``folder``."""

    def write(system: fsspec.AbstractFileSystem, name: str) -> None:
        # Many processes ask at once; one name would be written too often.
        draft = f"{name.rstrip('/')}/writable-{uuid.uuid4().hex}.draft"
        system.pipe_file(draft, b"")
        system.rm_file(draft)

    _try(folder, "written", write)


def _try(path: str, done: str, ask: Callable[[fsspec.AbstractFileSystem, str], None]) -> None:
    try:
        call_with_timeout(path, lambda: ask(*remote_storage(path)))
    except UserError:
        raise
    except Exception as error:  # each storage has its own
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        if is_transient(error):
            raise UnreachableError(f"{path}: cannot be {done} now ({reason}).") from None
        raise UserError(
            f"{path}: cannot be {done} ({reason}); name another path, or give this machine's "
            "account the right to it (`gcloud auth application-default login`)."
        ) from None


def call_with_timeout(path: str, ask: Callable[[], Result]) -> Result:
    """What ``ask`` returns or raises; UnreachableError where that takes longer than it may."""
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, ask()))
        except BaseException as error:
            outcome.append((False, error))

    # A daemon: a client that still tries must not keep the process from ending.
    asking = threading.Thread(target=run, daemon=True, name=f"asks {path}")
    asking.start()
    asking.join(TIMEOUT_SECONDS)
    if not outcome:
        raise UnreachableError(
            f"{path}: no answer in {TIMEOUT_SECONDS:.0f} s; is there a network, and may this "
            "machine's account read the bucket?"
        )
    good, value = outcome[0]
    if good:
        return value
    raise value
