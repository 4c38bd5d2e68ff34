"""A seccomp filter that denies processes, network access, file writes and signals to a program.

The filter is a classic BPF program for ``prctl(PR_SET_SECCOMP)`` (Linux, Documentation/
userspace-api/seccomp_filter). Four kinds of system calls fail with EPERM: calls that this module
lists as refused, calls that open a file for writing, commands of fcntl and ioctl that this module
does not list as allowed, and almost all calls with the number 424 or higher. All other calls are
allowed. Installing the filter requires no privileges.
"""

from collections.abc import Iterator, Sequence
import platform
import struct

# From linux/filter.h: BPF_LD | BPF_W | BPF_ABS; BPF_JMP | BPF_K with JEQ, JGE and JSET; BPF_RET.
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM, SECCOMP_RET_KILL_PROCESS.
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
# Offsets in struct seccomp_data. On little-endian machines the low half of an argument is first.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
X32 = 0x40000000
"""Lowest system call number of the x32 ABI, which is a second table of system calls on x86_64."""

# For each machine (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h): the
# audit architecture; each call that opens a file, with the index of its flags argument; the numbers
# of fcntl and ioctl; the refused calls.
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {2: 1, 257: 2},
        (72, 16),
        # socket .. socketpair, clone .. execve, kill
        "41 42 43 44 46 48 49 50 53 56 57 58 59 62 "
        # truncate, rename .. lchown, ptrace, utime, mknod, mount, chroot
        "76 77 82 83 84 85 86 87 88 90 91 92 93 94 101 132 133 161 165 166 "
        # xattrs, signals, times, shared memory and queues
        "188 189 190 197 198 199 200 234 129 297 235 29 30 31 64 65 66 220 68 69 70 71 240 241 "
        # the *at calls, unshare, setns, bpf, limits, other processes' memory, prctl
        "258 259 260 261 263 264 265 266 268 272 280 285 288 302 304 307 308 310 311 316 321 322 "
        # prctl, scheduling and placement of other processes, keys
        "157 141 142 144 203 251 256 279 314 248 249 250",
    ),
    "aarch64": (
        0xC00000B7,
        {56: 2},
        (25, 29),
        "5 6 7 14 15 16 33 34 35 36 37 38 39 40 45 46 47 51 52 53 54 55 88 97 117 "
        "129 130 131 138 140 164 180 181 186 187 188 189 190 191 192 193 194 195 196 198 199 200 "
        "201 202 203 206 211 220 221 240 242 261 265 268 269 270 271 276 280 281 167 "
        "30 118 119 122 238 239 274 217 218 219",
    ),
}
NEW = 424
"""System calls with this or a higher number have the same number on all architectures.

These calls are refused unless they are in ``_HARMLESS_NEW``.
"""
# close_range, faccessat2, epoll_pwait2, the futexes, mseal
_HARMLESS_NEW = (436, 439, 441, 449, 454, 455, 456, 462)
# Commands of fcntl that are allowed: to duplicate a descriptor, and to read and set its flags.
# Commands for signal owners and leases are refused.
_FCNTL = (0, 1, 2, 3, 4, 1030)
# Commands of ioctl that are allowed: terminal attributes and size, number of readable bytes,
# blocking mode, close-on-exec. Commands for the attributes of a file are refused.
_IOCTL = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def filter_program() -> bytes | None:
    """Return the filter program for this machine, or None if the machine is not supported."""
    machine = _MACHINES.get(platform.machine())
    if machine is None or platform.system() != "Linux":
        return None
    architecture, opening, (fcntl, ioctl), refused = machine
    return b"".join(
        [
            *_check_architecture(architecture),
            *(step for number in refused.split() for step in _refuse(int(number))),
            *(step for call in opening.items() for step in _allow_reading(*call)),
            *_allow_commands(fcntl, _FCNTL),
            *_allow_commands(ioctl, _IOCTL),
            *_allow_known(_HARMLESS_NEW),
        ]
    )


def _check_architecture(architecture: int) -> Iterator[bytes]:
    yield _instruction(LOAD, ARCHITECTURE)
    yield _instruction(EQUAL, architecture, yes=1)
    yield _instruction(RETURN, KILL)
    yield _instruction(LOAD, NUMBER)
    yield _instruction(AT_LEAST, X32, no=1)
    yield _instruction(RETURN, KILL)


def _refuse(number: int) -> Iterator[bytes]:
    yield _instruction(EQUAL, number, no=1)
    yield _instruction(RETURN, REFUSE)


def _allow_reading(number: int, argument: int) -> Iterator[bytes]:
    """Allow the call ``number`` only if its flags do not permit writing.

    ``argument`` is the index of the flags among the call's arguments.
    """
    yield _instruction(EQUAL, number, no=4)
    yield _instruction(LOAD, ARGUMENTS + 8 * argument)
    yield _instruction(ANY_BIT, WRITING, no=1)
    yield _instruction(RETURN, REFUSE)
    yield _instruction(RETURN, ALLOW)


def _allow_commands(number: int, commands: Sequence[int]) -> Iterator[bytes]:
    """Allow the call ``number`` only if its second argument is in ``commands``."""
    yield _instruction(EQUAL, number, no=2 * len(commands) + 2)
    yield _instruction(LOAD, ARGUMENTS + 8)
    for command in commands:
        yield _instruction(EQUAL, command, no=1)
        yield _instruction(RETURN, ALLOW)
    yield _instruction(RETURN, REFUSE)


def _allow_known(harmless: Sequence[int]) -> Iterator[bytes]:
    """Allow all calls with numbers below ``NEW``, and the calls in ``harmless``."""
    yield _instruction(AT_LEAST, NEW, yes=1)
    yield _instruction(RETURN, ALLOW)
    for number in harmless:
        yield _instruction(EQUAL, number, no=1)
        yield _instruction(RETURN, ALLOW)
    yield _instruction(RETURN, REFUSE)


def _instruction(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """Return a packed ``struct sock_filter``.

    A jump skips ``yes`` instructions if its condition is true, and ``no`` instructions otherwise.
    """
    return struct.pack("=HBBI", code, yes, no, value)
