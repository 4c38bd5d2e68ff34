"""Leases on chains of trials, for workers that share a local or ``gs://`` folder.

A lease is a JSON file with the name of its owner and a time stamp, which the owner renews. Object
storage has no locks. A worker therefore takes a lease in three steps: it writes the file, waits,
and reads the file. If several workers write at the same time, all of them read the last write and
agree on the owner. The clocks of the workers must differ by much less than ``EXPIRY_SECONDS``.
"""

from collections.abc import Generator
import contextlib
import json
import os
import socket
import threading
import time
import uuid

from etils import epath

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object

RENEW_SECONDS = 30.0
"""Seconds between renewals of a lease."""
EXPIRY_SECONDS = 300.0
"""Seconds from the last renewal of a lease to its expiry. Any worker can take an expired lease."""


@contextlib.contextmanager
def hold_lease(file: epath.Path, worker: str) -> Generator[bool]:
    """Context manager that takes the lease ``file``, renews it, and removes it on exit.

    Yields True if ``worker`` has the lease, and False if a different worker has it.
    """
    owner = f"{worker} ({socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]})"
    if not _take(file, owner):
        yield False
        return
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEW_SECONDS):
            # A failed renewal can be ignored, because the lease expires only after ten failures.
            with contextlib.suppress(OSError):
                _write(file, owner)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        # The thread must end first. Otherwise it could write the file after the file was removed.
        done.set()
        thread.join()
        with contextlib.suppress(OSError):
            file.unlink()


def lease_owner(file: epath.Path) -> str:
    """Return the name of the worker that has the lease, or "" if the lease is free or expired.

    A damaged file counts as a free lease. A lease expires if its time stamp is
    ``EXPIRY_SECONDS`` or more in the past or, if a clock is wrong, in the future.
    """
    try:
        lease = read_json_object(str(file), "delete it")
        worker, renewed = lease["worker"], float(lease["time"])
    # Another worker can remove the file while it is read.
    except (UserError, FileNotFoundError, ValueError, KeyError, TypeError, OverflowError):
        return ""
    return str(worker) if abs(time.time() - renewed) < EXPIRY_SECONDS else ""


def _take(file: epath.Path, owner: str) -> bool:
    if lease_owner(file):
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, owner)
    # Wait until other workers that also found the lease free have written their files.
    time.sleep(0.05 if "://" not in str(file) else 2.0)
    return lease_owner(file) == owner


def _write(file: epath.Path, owner: str) -> None:
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
    draft.write_text(json.dumps({"worker": owner, "time": time.time()}))
    draft.replace(file)
