"""A function that prints a command of this project as a user would type it, and runs it."""

from collections.abc import Collection, Mapping
import os
import signal
import subprocess
import sys
from types import FrameType

from llama_cpt.runtime.errors import INTERRUPTED, PREEMPTED, UserError
from llama_cpt.runtime.shown_command import command_line as command_line

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


def run_command(
    name: str,
    *arguments: str,
    accepted: Collection[int] = (),
    environment: Mapping[str, str] = ENVIRONMENT,
) -> int:
    """Print ``python -m llama_cpt.NAME ARGUMENTS``, run it on the CPU, and return its exit status.

    ``environment`` contains defaults of environment variables.

    Raises CommandFailedError if the status is neither 0 nor in ``accepted``. On Ctrl-C and SIGTERM,
    this process waits until the command ends, and then exits with the status of the command.
    """
    shown = command_line(name, *arguments)
    print(f"$ {shown}", flush=True)
    process: subprocess.Popen | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        # A terminal sends Ctrl-C to the whole process group, so the command has received it.
        if process and number == signal.SIGTERM:
            process.terminate()

    previous = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        command = [sys.executable, "-m", f"llama_cpt.{name}", *arguments]
        process = subprocess.Popen(command, env=dict(environment) | os.environ)
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
