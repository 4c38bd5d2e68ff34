"""A sandbox that runs untrusted Python code in a separate process with limits.

The process cannot start processes or threads, open connections, write or remove files, or send
signals. It is killed at its time limit or when the evaluator exits. It has no root capabilities
and, if the kernel supports Landlock, no access to other processes. It can read all files that its
user can read. The sandbox protects against accidents in generated code, not against an attacker.
Run hostile code in a virtual machine.
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
"""Description of the limits other than time, for help texts and messages."""
# The program of the child process. The child reads its request from stdin and writes its result to
# a duplicate of stdout. File descriptors 0 to 2 are /dev/null while the untrusted code runs.
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
# capset: no capabilities. PR_SET_NO_NEW_PRIVS. PR_SET_PDEATHSIG: SIGKILL if the evaluator ends.
limited = not (
    system.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24))
    or system.prctl(38, 1, 0, 0, 0)
    or system.prctl(1, 9, 0, 0, 0)
    or os.getppid() != order["parent"]  # The evaluator can end before prctl.
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
# While the program runs, the password is only on the stack and not in a variable.
os.write(verdict, [globals().pop("password"), exec(*run)][0])
os._exit(0)
"""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a program that ran in the sandbox."""

    status: Literal["passed", "failed", "too long"]
    """``passed`` if the program reached its end without an error, otherwise ``failed``.

    The status is ``too long`` if the program exceeded its time limit.
    """


def run_python(program: str, *, seconds: float = 10.0) -> Outcome:
    """Run ``program`` for at most ``seconds`` of CPU time and three times as much wall time.

    Raises UserError, without running the program, if this system cannot enforce the limits.
    """
    syscall_filter = filter_program()
    if syscall_filter is None:
        raise UserError(
            "generated code runs on Linux only (x86_64, aarch64); remove the task from --tasks."
        )
    # The child writes the password only if the program reaches its end. The program cannot imitate
    # this by output or an early exit, but it could find the password in its own memory.
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
        raise UserError(
            "this kernel does not support seccomp; run generated code on a kernel that does."
        )
    if reply is None:
        return Outcome("too long")
    return Outcome("passed" if reply == password else "failed")


def _run_child(order: str, seconds: float) -> str | None:
    """Return the text that the child process writes.

    Returns None if the process exceeds its time limit.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.defpath, "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        try:
            with process.stdin as pipe:
                pipe.write(order.encode("utf-8", "surrogateescape"))
            # Read only after the child ends. A program that fills the pipe blocks until timeout.
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
