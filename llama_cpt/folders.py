"""Folders to write in: whether one may, and one process at a time."""

from collections.abc import Iterator
import contextlib
import fcntl
import os
from pathlib import Path
import sys

from etils import epath

from llama_cpt.errors import UserError
from llama_cpt.reachable import require_remote_writable


@contextlib.contextmanager
def locked(file: epath.Path, told: str, *, wait: bool) -> Iterator[None]:
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


def require_local(what: str, path: str) -> None:
    """Raise UserError where ``path`` is remote, for what is written or read on a disk alone."""
    if "://" in path:
        raise UserError(
            f"{what} {path}: must be on this machine; name a local path, and copy it with "
            "`gcloud storage cp --recursive`."
        )


def require_writable(folder: str) -> None:
    """Raise UserError where ``folder`` (local or ``gs://``) is a file or cannot be made."""
    if "://" in folder:
        require_remote_writable(folder)
        return
    place = Path(folder).absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{folder}: {there} is a file; name another folder.")
    if not os.access(there, os.W_OK):
        raise UserError(f"{folder}: no right to write in {there}; name another folder.")
