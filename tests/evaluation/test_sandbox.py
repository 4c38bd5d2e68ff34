"""The sandbox: limits on generated code, and the seccomp filter of each machine."""

import ctypes
import fcntl
import os
import platform
import struct
import subprocess
import sys
import time

import pytest

from llama_cpt.evaluation.sandbox import sandbox
from llama_cpt.evaluation.sandbox.sandbox import run_python
from llama_cpt.evaluation.sandbox.system_calls import (
    ALLOW,
    ANY_BIT,
    AT_LEAST,
    EQUAL,
    KILL,
    LOAD,
    REFUSE,
    filter_program,
)
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(filter_program() is None, reason="no filter for this machine")


PASSWORD_SEEKER = """
import os, re, sys
found = re.findall("'([0-9a-f]{32})'", repr(sys._getframe(1).f_globals))
os.write(3, found[0].encode())
os._exit(0)
"""


def test_only_programs_that_reach_their_end_pass():
    assert run_python("import math, decimal, re\nassert math.sqrt(4) == 2").status == "passed"
    for program in (
        "assert False",
        "syntax error",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "import os; os.write(3, b'unlimited'); os._exit(0)",
        PASSWORD_SEEKER,
    ):
        assert run_python(program).status == "failed"


@pytest.mark.parametrize(
    "attempt",
    [
        "os.fork()",
        "subprocess.run(['true'])",
        "threading.Thread(target=print).start()",
        "socket.socket()",
        "os.kill(os.getppid(), 0)",
        "open(path, 'a')",
        "os.remove(path)",
        "os.mkdir(path + 's')",
        "os.rename(path, path + 's')",
        "os.link(path, path + 's')",
        "os.symlink(path, path + 's')",
        "os.chmod(path, 0)",
        "os.truncate(path, 0)",
        "os.utime(path)",
        "os.setxattr(path, 'user.x', b'')",
        "os.sched_setaffinity(os.getppid(), [0])",
        "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "fcntl.fcntl(0, fcntl.F_SETSIG, 9)",
        "fcntl.ioctl(os.open(path, os.O_RDONLY), 0x40086602, bytes(8))",  # FS_IOC_SETFLAGS
        "call('ptrace', 16, os.getppid(), 0, 0)",
        "call('prctl', 1, 0, 0, 0, 0)",
        "call('syscall', 434, os.getppid(), 0)",  # pidfd_open
        "call('syscall', 438, 0, 0, 0)",  # pidfd_getfd
        "call('syscall', 463, 0, 0, 0, 0, 0, 0)",  # setxattrat
        "call('syscall', 999)",
        "bytearray(4 << 30)",
    ],
)
def test_sandbox_refuses(attempt, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    # Without root capabilities the program may still write to this folder: only the filter
    # protects it.
    os.chmod(tmp_path, 0o777)
    program = (
        f"{CALL}path = {str(kept)!r}\nopen(path).read()\n"
        f"try:\n    {attempt}\nexcept (RuntimeError, MemoryError):\n    pass\n"
        # The filter fails calls with EPERM.
        "except OSError as error:\n    assert error.errno == errno.EPERM\n"
        "else:\n    raise SystemExit(1)\n"
    )
    assert run_python(program).status == "passed"
    assert [file.read_text() for file in tmp_path.iterdir()] == ["as it was"]


CALL = """
import ctypes, errno, fcntl, os, socket, subprocess, threading
system = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(system, name)(*args) == -1:
        raise OSError(ctypes.get_errno(), name)
"""


NO_RIGHTS = """
import re
assert re.search("CapEff:.0{16}\\n", open("/proc/self/status").read())
assert re.search("Max processes +0 +0 ", open("/proc/self/limits").read())
"""


def test_no_capabilities_are_left():
    assert run_python(NO_RIGHTS).status == "passed"


HAS_LANDLOCK = ctypes.CDLL(None).syscall(444, None, 0, 1) > 0


@pytest.mark.skipif(os.geteuid() != 0 and not HAS_LANDLOCK, reason="nothing refuses it here")
@pytest.mark.parametrize("look", ["environ", "mem"])
def test_evaluator_memory_is_inaccessible(look):
    program = f"try:\n    open('/proc/{os.getpid()}/{look}')\nexcept PermissionError:\n    pass\n"
    assert run_python(f"{program}else:\n    raise SystemExit(1)").status == "passed"


def test_child_ends_with_the_evaluator(tmp_path):
    held = tmp_path / "held"
    held.touch()
    program = (
        f"import fcntl, time\nheld = open({str(held)!r})\nfcntl.flock(held, 2)\ntime.sleep(25)"
    )
    command = (
        f"from llama_cpt.evaluation.sandbox.sandbox import run_python\nrun_python({program!r})"
    )
    with subprocess.Popen([sys.executable, "-c", command], cwd=ROOT) as evaluator:
        _wait_until(lambda: not _is_free(held))
        evaluator.kill()
    _wait_until(lambda: _is_free(held))


def _is_free(path):
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _wait_until(holds):
    end = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("forever", ["time.sleep(1000)", "while True: print('a' * 999)"])
def test_program_that_never_ends_is_killed(forever):
    start = time.monotonic()
    assert run_python(f"import time\n{forever}", seconds=0.5).status == "too long"
    assert time.monotonic() - start < 60


def test_nothing_runs_without_a_filter(monkeypatch):
    monkeypatch.setattr(sandbox, "filter_program", lambda: None)
    with pytest.raises(ValueError, match="Linux only"):
        run_python("pass")


@pytest.mark.parametrize(
    ("machine", "architecture", "allowed", "refused"),
    [
        (
            "x86_64",
            0xC000003E,
            [(0,), (2, 0, 0), (257, 0, 0, 0o2000000), (72, 0, 3), (16, 0, 0x5401), (334,), (436,)],
            [(41,), (2, 0, 1), (257, 0, 0, 0o100), (72, 0, 8), (16, 0, 0x40086602), (463,), (999,)],
        ),
        (
            "aarch64",
            0xC00000B7,
            [(63,), (56, 0, 0, 0), (25, 0, 3), (29, 0, 0x5401), (293,), (436,)],
            [(198,), (56, 0, 0, 2), (25, 0, 10), (29, 0, 0x40086602), (167,), (438,), (999,)],
        ),
    ],
)
def test_filter_of_each_machine(monkeypatch, machine, architecture, allowed, refused):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    packed = filter_program()
    assert packed is not None
    program = list(struct.iter_unpack("=HBBI", packed))
    assert {_said_to(program, architecture, *call) for call in allowed} == {ALLOW}
    assert {_said_to(program, architecture, *call) for call in refused} == {REFUSE}
    # Calls of another architecture, and calls of the x32 table.
    assert _said_to(program, 0x40000003, 0) == _said_to(program, architecture, 1 << 30) == KILL


def _said_to(program, architecture, number, *arguments):
    """Return the filter's result for a system call, as a classic BPF interpreter computes it."""
    arguments = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments)
    place = loaded = 0
    while True:
        code, yes, no, value = program[place]
        place += 1
        if code == LOAD:
            loaded = int.from_bytes(data[value : value + 4], "little")
            continue
        if code not in (EQUAL, AT_LEAST, ANY_BIT):
            return value
        holds = {EQUAL: loaded == value, AT_LEAST: loaded >= value, ANY_BIT: bool(loaded & value)}
        place += yes if holds[code] else no
