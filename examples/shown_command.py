"""The project's commands run one after the other, each shown as a user would type it."""

from collections.abc import Collection
import os
import shlex
import signal
import subprocess
import sys
from types import FrameType

from llama_cpt.runtime.errors import INTERRUPTED, PREEMPTED, UserError

# Sized for CPUs; an accelerator that others use is left alone. Without the rest, glibc gives every
# step's memory back, and the next step's page faults take a third of its time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


class CommandFailedError(UserError):
    """A shown command that failed; it ends this process with the same status."""

    def __init__(self, shown: str, status: int) -> None:
        super().__init__(f"`{shown}` ended with status {status}; see above.")
        self.status = status


def run_command(name: str, *arguments: str, accepted: Collection[int] = ()) -> int:
    """Run ``python -m llama_cpt.NAME`` on the CPU and show it; its status, 0 or ``accepted``.

    Ctrl-C and SIGTERM are the command's to obey, which may save first; then this process leaves as
    it did. Raises CommandFailedError if it ends otherwise.
    """
    shown = shlex.join(("python", "-m", f"llama_cpt.{name}", *arguments))
    environment = ENVIRONMENT | os.environ
    print(f"$ {shown}", flush=True)
    process: subprocess.Popen | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        # A terminal sends Ctrl-C to the command as well.
        if process and number == signal.SIGTERM:
            process.terminate()

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", f"llama_cpt.{name}", *arguments], env=environment
        )
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # Below 0: by the signal itself, before the command had begun to heed it.
    status = status if status >= 0 else 128 - status
    if status in (PREEMPTED, INTERRUPTED, 128 + signal.SIGTERM):
        print("Stopped; give the same command again to go on.", file=sys.stderr)
        raise SystemExit(status)
    if status and status not in accepted:
        raise CommandFailedError(shown, status)
    return status
