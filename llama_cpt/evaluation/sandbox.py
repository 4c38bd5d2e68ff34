"""Python code that nobody has read, run in a process of its own within limits.

It makes no process or thread, opens no connection, writes and removes no file, signals nobody, and
ends after its time. It may read what its user may. This keeps accidents of generated code away;
it is no wall against an attacker, for whom a virtual machine is.
"""

from dataclasses import dataclass
import json
import os
import secrets
import signal
import subprocess
import sys
from typing import Literal

from llama_cpt.errors import UserError
from llama_cpt.evaluation.system_calls import filter_program

MEMORY_BYTES = 1 << 30
ENFORCED = (
    f"at most {MEMORY_BYTES >> 20} MiB, no process or thread, no network, no writing or removing "
    "of files"
)
"""Beside the time; told to who allows code to run."""
# The order comes on stdin, the verdict goes out on what was stdout.
CHILD = """
import ctypes, json, os, resource, sys
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
prctl = ctypes.CDLL(None).prctl
limits = Filter(len(program) // 8, ctypes.addressof(kept))
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.byref(limits), 0, 0):
    os.write(verdict, b"unlimited")
    os._exit(1)
code = order["program"]
exec(compile(code, "<answer>", "exec"), {"__name__": "__main__"})
os.write(verdict, order["password"].encode())
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
    # What the program cannot know: only its end says it.
    password = secrets.token_hex(16)
    order = {
        "program": program,
        "password": password,
        "filter": refused.hex(),
        "limits": {
            "RLIMIT_CPU": int(seconds) + 1,
            "RLIMIT_AS": MEMORY_BYTES,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        },
    }
    said = _said(json.dumps(order), 3 * seconds)
    if said == "unlimited":
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
