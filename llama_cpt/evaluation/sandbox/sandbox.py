"""Untrusted Python code, run in a process of its own with limits.

The process cannot start processes or threads, open connections, write or remove files, or send
signals, and it ends after its time or with the evaluator. It has no root capabilities and, if the
kernel has Landlock, no access to other processes. It can read the files that its user can read.
This protects against accidents of generated code, not against an attacker; for that, use a virtual
machine.
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
"""The limits besides time, for the message that requests permission to run code."""
# The program of the child. It reads its request from stdin and writes its result to a duplicate of
# stdout; descriptors 0 to 2 are /dev/null after that.
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
# capset: no capabilities. PR_SET_NO_NEW_PRIVS. PR_SET_PDEATHSIG: end with the evaluator.
limited = not (
    system.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24))
    or system.prctl(38, 1, 0, 0, 0)
    or system.prctl(1, 9, 0, 0, 0)
    or os.getppid() != order["parent"]  # It may have ended before the call above.
)
# Landlock: no writing, creating, removing or executing of files, no ptrace of other processes.
rules = system.syscall(444, struct.pack("=Q", 0x1FF3), ctypes.c_size_t(8), 0)
if rules >= 0:
    system.syscall(446, rules, 0)
    os.close(rules)
password = order.pop("password").encode()
if not limited or system.prctl(22, 2, ctypes.byref(filter), 0, 0):
    os.write(verdict, b"unlimited" + password)
    os._exit(1)
run = compile(order["program"], "<answer>", "exec"), {"__name__": "__main__"}
# The password is on the stack only while the program runs, not in a variable it could read.
os.write(verdict, [globals().pop("password"), exec(*run)][0])
os._exit(0)
"""


@dataclass(frozen=True)
class Outcome:
    """The outcome of running a program."""

    status: Literal["passed", "failed", "too long"]
    """``passed`` if the program ran to its end without an error."""


def run_python(program: str, *, seconds: float = 10.0) -> Outcome:
    """Run ``program`` for at most ``seconds`` of processor time and three times that of wall time.

    Raises UserError, without running anything, if this system cannot enforce the limits.
    """
    syscall_filter = filter_program()
    if syscall_filter is None:
        raise UserError("generated code runs on Linux only (x86_64, aarch64); drop the task here.")
    # Only a program that reaches its end writes the password; neither its output nor an early exit
    # can. A program that searches the memory of its process can still find it.
    password = secrets.token_hex(16)
    order = {
        "program": program,
        "parent": os.getpid(),
        "password": password,
        "filter": syscall_filter.hex(),
        "limits": {
            "RLIMIT_CPU": int(seconds) + 1,
            "RLIMIT_AS": MEMORY_BYTES,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_NPROC": 0,
            "RLIMIT_CORE": 0,
        },
    }
    reply = _run_child(json.dumps(order), 3 * seconds)
    if reply == f"unlimited{password}":
        raise UserError("this system has no seccomp; run generated code on one that has it.")
    if reply is None:
        return Outcome("too long")
    return Outcome("passed" if reply == password else "failed")


def _run_child(order: str, seconds: float) -> str | None:
    """Return the result that the child writes, or None if it ran out of time."""
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
            # Read only after the end: a program that fills the pipe blocks until its time is over.
            process.wait(seconds)
        except BrokenPipeError:
            pass
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()
        ended = process.wait()
        reply = os.read(process.stdout.fileno(), 1 << 16).decode(errors="replace")
    # RLIMIT_CPU sends SIGXCPU at the soft limit and SIGKILL at the hard limit.
    return None if ended in (-signal.SIGXCPU, -signal.SIGKILL) else reply
