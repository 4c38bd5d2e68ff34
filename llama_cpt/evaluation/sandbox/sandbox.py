"""Python code that nobody has read, run in a process of its own within limits.

It makes no process or thread, opens no connection, writes and removes no file, signals nobody, and
ends after its time or with the evaluator. It may read the files that its user may. Neither root's
capabilities nor, where the kernel has Landlock, a look into other processes are left to it. This
keeps accidents of generated code away; it is no wall against an attacker, for whom a virtual
machine is.
"""

from dataclasses import dataclass
import json
import os
import secrets
import signal
import subprocess
import sys
from typing import Literal

from llama_cpt.evaluation.sandbox.system_calls import filter_program
from llama_cpt.runtime.errors import UserError

MEMORY_BYTES = 1 << 30
ENFORCED = (
    f"at most {MEMORY_BYTES >> 20} MiB, no process or thread, no network, no writing or removing "
    "of files"
)
"""Beside the time; told to who allows code to run."""
# The order comes on stdin, the verdict goes out on what was stdout.
CHILD = """
import ctypes, json, os, resource, struct, sys
order = json.load(sys.stdin)
verdict, null = os.dup(1), os.open("/dev/null", os.O_RDWR)
for number in range(3):
    os.dup2(null, number)
os.chdir("/")
for name, value in order["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("first", ctypes.c_void_p)]
program = bytes.fromhex(order["filter"])
kept = ctypes.create_string_buffer(program, len(program))
filter = Filter(len(program) // 8, ctypes.addressof(kept))
system = ctypes.CDLL(None)
# None of root's capabilities; no new ones; the evaluator's end is its own, also if that was before.
limited = not (
    system.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24))
    or system.prctl(38, 1, 0, 0, 0)
    or system.prctl(1, 9, 0, 0, 0)
    or os.getppid() != order["parent"]
)
# Landlock: no writing, making, removing or running of files, and no look into other processes.
rules = system.syscall(444, struct.pack("=Q", 0x1FF3), ctypes.c_size_t(8), 0)
if rules >= 0:
    system.syscall(446, rules, 0)
    os.close(rules)
password = order.pop("password").encode()
if not limited or system.prctl(22, 2, ctypes.byref(filter), 0, 0):
    os.write(verdict, b"unlimited" + password)
    os._exit(1)
run = compile(order["program"], "<answer>", "exec"), {"__name__": "__main__"}
# While it runs, the password has no name.
os.write(verdict, [globals().pop("password"), exec(*run)][0])
os._exit(0)
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    status: Literal["passed", "failed", "too long"]
    """``passed``: it ran to its end."""


def run_python(program: str, *, seconds: float = 10.0) -> Outcome:
    """Run ``program`` for ``seconds`` of processor time, and three times that on the clock.

    Raises UserError, having run nothing, where this system cannot hold it to the limits.
    """
    refused = filter_program()
    if refused is None:
        raise UserError("generated code runs on Linux only (x86_64, aarch64), where it has limits.")
    # Only the program's end says it: not what it prints, nor an early exit. Who looks for it in the
    # process's memory finds it.
    password = secrets.token_hex(16)
    order = {
        "program": program,
        "parent": os.getpid(),
        "password": password,
        "filter": refused.hex(),
        "limits": {
            "RLIMIT_CPU": int(seconds) + 1,
            "RLIMIT_AS": MEMORY_BYTES,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_NPROC": 0,
            "RLIMIT_CORE": 0,
        },
    }
    said = _said(json.dumps(order), 3 * seconds)
    if said == f"unlimited{password}":
        raise UserError("this system has no seccomp: generated code cannot be held to limits here.")
    if said is None:
        return Outcome("too long")
    return Outcome("passed" if said == password else "failed")


def _said(order: str, seconds: float) -> str | None:
    """The child's verdict; None where it did not end by itself."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    with process:
        try:
            with process.stdin as pipe:
                pipe.write(order.encode("utf-8", "surrogateescape"))
            # Not read before it ends: what fills the pipe waits there for its time to be over.
            process.wait(seconds)
        except BrokenPipeError:
            pass
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()
        ended = process.wait()
        said = os.read(process.stdout.fileno(), 1 << 16).decode(errors="replace")
    # What the limit of processor time sends.
    return None if ended in (-signal.SIGXCPU, -signal.SIGKILL) else said
