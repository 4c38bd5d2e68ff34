"""Leases on chains of trials, for workers that share a folder, local or ``gs://``.

A lease is a JSON file with its owner and a time stamp, which the owner renews. Object storage has
no locks, so a worker takes a lease by writing, waiting and reading back: of several workers that
write at the same time, the last write wins, and all of them read the same owner. The workers'
clocks must agree to well within ``EXPIRY_SECONDS``.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import socket
import threading
import time
import uuid

from etils import epath

RENEW_SECONDS = 30.0
"""Seconds between renewals of a lease."""
EXPIRY_SECONDS = 300.0
"""Seconds without renewal after which any worker may take the lease."""


@contextlib.contextmanager
def hold_lease(file: epath.Path, worker: str) -> Iterator[bool]:
    """Context manager that holds the lease ``file``; yields False if another worker holds it."""
    owner = f"{worker} ({socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]})"
    if not _take(file, owner):
        yield False
        return
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEW_SECONDS):
            # A failed renewal is harmless: the lease expires only after ten of them.
            with contextlib.suppress(OSError):
                _write(file, owner)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        # The thread must end first, or it could write the file again after it is removed.
        done.set()
        thread.join()
        with contextlib.suppress(OSError):
            file.unlink()


def lease_owner(file: epath.Path) -> str:
    """Return the worker that holds the lease, "" if it is free or expired."""
    try:
        lease = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return ""
    return lease["worker"] if time.time() - lease["time"] < EXPIRY_SECONDS else ""


def _take(file: epath.Path, owner: str) -> bool:
    if lease_owner(file):
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, owner)
    # Long enough for other workers that saw the lease free to have written theirs.
    time.sleep(0.05 if "://" not in str(file) else 2.0)
    return lease_owner(file) == owner


def _write(file: epath.Path, owner: str) -> None:
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
    draft.write_text(json.dumps({"worker": owner, "time": time.time()}))
    draft.replace(file)
