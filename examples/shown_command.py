"""Functions that print a command of this project as a user would type it, and run it."""

from collections.abc import Collection
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys
from types import FrameType

from llama_cpt.runtime.errors import INTERRUPTED, PREEMPTED, UserError

# The examples are sized for CPUs, so they leave accelerators to other processes. With these malloc
# settings, glibc does not return memory to the operating system after each step. Otherwise, page
# faults take a third of the time of the next step.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


class CommandFailedError(UserError):
    """Error for a failed command. This process exits with the status of the command."""

    def __init__(self, shown: str, status: int) -> None:
        super().__init__(f"`{shown}` ended with status {status}; see above.")
        self.status = status


def command_line(name: str, *arguments: str) -> str:
    """Return ``python -m llama_cpt.NAME ARGUMENTS``, quoted for a shell.

    The line uses the Python of ``interpreter()``, so it is for a shell in the working directory.
    """
    return shlex.join((interpreter(), "-m", f"llama_cpt.{name}", *arguments))


def interpreter() -> str:
    """Return the path of the running Python, relative if the file is in the working directory.

    The word ``python`` alone would start a different Python in a shell in which the virtual
    environment is not activated.
    """
    executable = Path(sys.executable)
    # Resolve only the folder. In a virtual environment, the file is a link to a Python outside it.
    resolved = executable.parent.resolve() / executable.name
    if not resolved.is_relative_to(Path.cwd()):
        return sys.executable
    relative = resolved.relative_to(Path.cwd())
    # A shell searches PATH for a name without a slash.
    return str(relative) if len(relative.parts) > 1 else f"./{relative}"


def run_command(name: str, *arguments: str, accepted: Collection[int] = ()) -> int:
    """Print ``python -m llama_cpt.NAME ARGUMENTS``, run it on the CPU, and return its exit status.

    Raises CommandFailedError if the status is neither 0 nor in ``accepted``. On Ctrl-C and SIGTERM,
    this process waits until the command ends, and then exits with the status of the command.
    """
    shown = command_line(name, *arguments)
    environment = ENVIRONMENT | os.environ
    print(f"$ {shown}", flush=True)
    process: subprocess.Popen | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        # A terminal sends Ctrl-C to the whole process group, so the command has received it.
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
    # The status is negative if a signal ended the command, usually before the command installed
    # its signal handlers.
    status = status if status >= 0 else 128 - status
    if status in (PREEMPTED, INTERRUPTED, 128 + signal.SIGTERM):
        print("Stopped; run the same command again to resume.", file=sys.stderr)
        raise SystemExit(status)
    if status and status not in accepted:
        raise CommandFailedError(shown, status)
    return status
