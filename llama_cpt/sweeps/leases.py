"""Who is at which chain of trials: workers that share a folder, local or ``gs://``."""

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
"""How often a worker says that it is still at it."""
EXPIRY_SECONDS = 300.0
"""Silence after which a worker is taken for lost, and its chain is anybody's."""


@contextlib.contextmanager
def hold_lease(file: epath.Path, worker: str) -> Iterator[bool]:
    """Hold the claim ``file`` and renew it; False where a living worker holds it."""
    me = f"{worker} ({socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]})"
    if not _taken(file, me):
        yield False
        return
    done = threading.Event()

    def beat() -> None:
        while not done.wait(RENEW_SECONDS):
            # A beat that is missed is no loss: ten must be.
            with contextlib.suppress(OSError):
                _write(file, me)

    thread = threading.Thread(target=beat, name="claim", daemon=True)
    thread.start()
    try:
        yield True
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(OSError):
            file.unlink()


def lease_owner(file: epath.Path) -> str:
    """The living worker that holds the claim; "" for none."""
    try:
        held = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return ""
    return held["worker"] if time.time() - held["time"] < EXPIRY_SECONDS else ""


def _taken(file: epath.Path, me: str) -> bool:
    if lease_owner(file):
        return False
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, me)
    # Of two that write at a time, the one that is read afterwards has it.
    time.sleep(0.05 if "://" not in str(file) else 2.0)
    return lease_owner(file) == me


def _write(file: epath.Path, me: str) -> None:
    draft = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
    draft.write_text(json.dumps({"worker": me, "time": time.time()}))
    draft.replace(file)
