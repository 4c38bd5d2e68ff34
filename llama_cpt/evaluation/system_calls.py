"""A filter of system calls for code that nobody has read: no process, network, writing or killing.

A classic BPF program for ``prctl(PR_SET_SECCOMP)`` (Linux, Documentation/userspace-api/
seccomp_filter). What it refuses fails with EPERM; all else is allowed. It needs no rights.
"""

from collections.abc import Iterator
import platform
import struct

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
# Offsets in struct seccomp_data; an argument's lower half comes first.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
X32 = 0x40000000
"""Numbers from here on are another table of the same machine."""

# By machine: its audit number; the calls that open a file, and the place of their flags; the calls
# that are refused (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
_NEW_EVERYWHERE = "424 425 428 429 430 431 432 433 435 437 442 452"
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {2: 1, 257: 2},
        # socket .. socketpair, clone .. execve, kill
        "41 42 43 44 46 48 49 50 53 56 57 58 59 62 "
        # truncate, rename .. lchown, ptrace, utime, mknod, mount, chroot
        "76 77 82 83 84 85 86 87 88 90 91 92 93 94 101 132 133 161 165 166 "
        # xattrs, signals, times, shared memory and queues
        "188 189 190 197 198 199 200 234 129 297 235 29 30 64 68 69 141 240 241 "
        # the *at calls, unshare, setns, bpf, limits, other processes' memory
        "258 259 260 261 263 264 265 266 268 272 280 285 288 302 307 308 311 316 321 322",
    ),
    "aarch64": (
        0xC00000B7,
        {56: 2},
        "5 6 7 14 15 16 33 34 35 36 37 38 39 40 45 46 47 51 52 53 54 55 88 97 117 "
        "129 130 131 138 140 164 180 181 186 189 194 196 198 199 200 201 202 203 206 211 "
        "220 221 240 242 261 268 269 271 276 280 281",
    ),
}


def filter_program() -> bytes | None:
    """The program for this machine; None where there is none."""
    machine = _MACHINES.get(platform.machine())
    if machine is None or platform.system() != "Linux":
        return None
    architecture, opening, refused = machine
    numbers = map(int, f"{refused} {_NEW_EVERYWHERE}".split())
    return b"".join(_instructions(architecture, opening, numbers))


def _instructions(
    architecture: int, opening: dict[int, int], refused: Iterator[int]
) -> Iterator[bytes]:
    yield _one(LOAD, ARCHITECTURE)
    yield _one(EQUAL, architecture, yes=1)
    yield _one(RETURN, KILL)
    yield _one(LOAD, NUMBER)
    yield _one(AT_LEAST, X32, no=1)
    yield _one(RETURN, KILL)
    for number in refused:
        yield _one(EQUAL, number, no=1)
        yield _one(RETURN, REFUSE)
    for number, argument in opening.items():
        yield _one(EQUAL, number, no=4)
        yield _one(LOAD, ARGUMENTS + 8 * argument)
        yield _one(ANY_BIT, WRITING, no=1)
        yield _one(RETURN, REFUSE)
        yield _one(RETURN, ALLOW)
    yield _one(RETURN, ALLOW)


def _one(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """A struct sock_filter; a jump skips ``yes`` or ``no`` instructions."""
    return struct.pack("=HBBI", code, yes, no, value)
