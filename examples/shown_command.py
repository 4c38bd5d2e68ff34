"""Execution of the project's commands, each printed as a user would type it."""

from collections.abc import Collection
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys
from types import FrameType

from llama_cpt.runtime.errors import INTERRUPTED, PREEMPTED, UserError

# The examples are sized for CPUs, and an accelerator that others use is left alone. The malloc
# settings keep glibc from returning every step's memory to the system: the page faults of the
# next step would take a third of its time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


class CommandFailedError(UserError):
    """A shown command that failed; this process exits with the same status."""

    def __init__(self, shown: str, status: int) -> None:
        super().__init__(f"`{shown}` ended with status {status}; see above.")
        self.status = status


def command_line(name: str, *arguments: str) -> str:
    """Return ``python -m llama_cpt.NAME`` quoted for a shell in the working directory."""
    return shlex.join((interpreter(), "-m", f"llama_cpt.{name}", *arguments))


def interpreter() -> str:
    """Return the path of this Python, relative to the working directory if it is inside it.

    A bare ``python`` would be another one in a shell that has not activated the environment.
    """
    executable = Path(sys.executable)
    # Only the folder is resolved: in a virtual environment the file links to a Python elsewhere.
    resolved = executable.parent.resolve() / executable.name
    if not resolved.is_relative_to(Path.cwd()):
        return sys.executable
    relative = resolved.relative_to(Path.cwd())
    # A shell looks up a name without a slash in PATH.
    return str(relative) if len(relative.parts) > 1 else f"./{relative}"


def run_command(name: str, *arguments: str, accepted: Collection[int] = ()) -> int:
    """Print and run ``python -m llama_cpt.NAME`` on the CPU; return its status, 0 or ``accepted``.

    Ctrl-C and SIGTERM go to the command, which may save first; this process then exits with the
    command's status. Raises CommandFailedError for any other status.
    """
    shown = command_line(name, *arguments)
    environment = ENVIRONMENT | os.environ
    print(f"$ {shown}", flush=True)
    process: subprocess.Popen | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        # A terminal sends Ctrl-C to the whole process group, so the command has it already.
        if process and number == signal.SIGTERM:
            process.terminate()

    previous = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", f"llama_cpt.{name}", *arguments], env=environment
        )
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    # A negative status is a death by signal, before the command had installed its handlers.
    status = status if status >= 0 else 128 - status
    if status in (PREEMPTED, INTERRUPTED, 128 + signal.SIGTERM):
        print("Stopped; run the same command again to resume.", file=sys.stderr)
        raise SystemExit(status)
    if status and status not in accepted:
        raise CommandFailedError(shown, status)
    return status
