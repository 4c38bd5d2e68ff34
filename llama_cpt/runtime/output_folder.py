"""File locks, and checks that an output folder is writable and shared by all processes."""

from collections.abc import Generator
import contextlib
import fcntl
import logging
import os
from pathlib import Path
import time
import uuid

from etils import epath

from llama_cpt.runtime.distributed import (
    allgather_strings,
    is_primary,
    process_count,
    process_index,
    process_label,
    run_on_primary,
)
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import require_regular_file, validate_path
from llama_cpt.runtime.storage import check_remote_writable

logger = logging.getLogger(__name__)

VISIBILITY_SECONDS = 10.0
"""Seconds within which a new file must become visible to the other processes."""


@contextlib.contextmanager
def file_lock(file: epath.Path, message: str, *, wait: bool) -> Generator[None]:
    """Context manager that creates ``file`` in an existing folder and locks the file exclusively.

    If another process holds the lock, ``message`` is logged and the context manager waits. With
    ``wait`` False, a UserError with ``message`` is raised instead. An object store (``gs://``) has
    no locks, so for a remote ``file`` the context manager does nothing.
    """
    if "://" in str(file):
        yield
        return
    # Opening a named pipe for writing would block.
    require_regular_file(str(file))
    # The lock belongs to the open file: the kernel releases it even if the process is killed. The
    # file is not truncated, because it can be a link to a different file.
    with open(file, "a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(message) from None
            logger.info(message)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def check_shared(what: str, folder: str) -> None:
    """Create ``folder``, and raise UserError unless all processes see the same folder.

    ``what`` is the name of the option or field in the message.
    """

    def create_marker() -> str:
        path = epath.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / (name := f"shared-{uuid.uuid4().hex}.draft")).write_text("")
        return name

    if process_count() == 1:
        return
    file = epath.Path(folder) / run_on_primary(create_marker, f"{what} marked")
    # A network file system can show the file with a delay.
    deadline = time.monotonic() + VISIBILITY_SECONDS
    while not (visible := file.exists()) and time.monotonic() < deadline:
        time.sleep(0.5)
    label = "" if visible else process_label(process_index())
    without = [process for process in allgather_strings(label, f"{what} seen") if process]
    if is_primary():
        file.unlink()
    if without:
        raise UserError(
            f"{what}={folder} is not the same folder on {', '.join(without)} as on the primary "
            "process; name a folder that all hosts share (gs://, or a mounted file system)."
        )


def check_local(what: str, path: str) -> None:
    """Raise UserError, which names the option or field ``what``, if ``path`` is remote."""
    validate_path(path)
    if "://" in path:
        raise UserError(
            f"{what} {path} must be on this machine; name a local path, and copy it with "
            "`gcloud storage cp --recursive`."
        )


def check_writable(folder: str) -> None:
    """Raise UserError if ``folder`` (local or ``gs://``) is a file or cannot be written."""
    validate_path(folder)
    if "://" in folder:
        check_remote_writable(folder)
        return
    absolute = Path(folder).absolute()
    existing = next(path for path in (absolute, *absolute.parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder}: {existing} is a file; name another folder.")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{folder}: no permission to write in {existing}; name another folder.")
