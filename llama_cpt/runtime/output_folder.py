"""Folders to write in: whether one may, and one process at a time."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
from pathlib import Path
import sys
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
from llama_cpt.runtime.literal_paths import validate_path
from llama_cpt.runtime.storage import check_remote_writable

VISIBILITY_SECONDS = 10.0


@contextlib.contextmanager
def file_lock(file: epath.Path, told: str, *, wait: bool) -> Iterator[None]:
    """Hold the lock ``file``, made where it is not there; its folder must be.

    Where another process holds it: print ``told`` and wait, or raise it as UserError. An object
    store (``gs://``) knows no locks: there nothing is held.
    """
    if "://" in str(file):
        yield
        return
    with open(file, "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(told) from None
            print(told, file=sys.stderr)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def check_shared(what: str, folder: str) -> None:
    """Raise UserError where the processes of the command do not see one ``folder``; makes it."""

    def lay() -> str:
        place = epath.Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / (name := f"shared-{uuid.uuid4().hex}.draft")).write_text("")
        return name

    if process_count() == 1:
        return
    file = epath.Path(folder) / run_on_primary(lay, f"{what} begun")
    # A network's file system may tell of it a moment later.
    until = time.monotonic() + VISIBILITY_SECONDS
    while not (there := file.exists()) and time.monotonic() < until:
        time.sleep(0.5)
    without = [
        one
        for one in allgather_strings(
            "" if there else process_label(process_index()), f"{what} seen"
        )
        if one
    ]
    if is_primary():
        file.unlink()
    if without:
        raise UserError(
            f"{what}={folder}: not the same place on {', '.join(without)} as on the first process "
            "of the command: name one that all share (gs://, or a mounted file system)."
        )


def check_local(what: str, path: str) -> None:
    """Raise UserError where ``path`` is remote, for what is written or read on a disk alone."""
    validate_path(path)
    if "://" in path:
        raise UserError(
            f"{what} {path}: must be on this machine; name a local path, and copy it with "
            "`gcloud storage cp --recursive`."
        )


def check_writable(folder: str) -> None:
    """Raise UserError where ``folder`` (local or ``gs://``) is a file or cannot be made."""
    validate_path(folder)
    if "://" in folder:
        check_remote_writable(folder)
        return
    place = Path(folder).absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{folder}: {there} is a file; name another folder.")
    if not os.access(there, os.W_OK):
        raise UserError(f"{folder}: no right to write in {there}; name another folder.")
