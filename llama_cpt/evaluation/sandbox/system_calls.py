"""A filter of system calls for code that nobody has read: no process, network, writing or killing.

A classic BPF program for ``prctl(PR_SET_SECCOMP)`` (Linux, Documentation/userspace-api/
seccomp_filter). What it refuses fails with EPERM: the calls listed here, and those that are newer
than this list. All else is allowed. It needs no rights.
"""

from collections.abc import Iterator, Sequence
import platform
import struct

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
# Offsets in struct seccomp_data; an argument's lower half comes first.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
WRITING = 0o1 | 0o2 | 0o100 | 0o1000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
X32 = 0x40000000
"""Numbers from here on are another table of the same machine."""

# By machine (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h): its audit
# number; the calls that open a file, and the place of their flags; fcntl and ioctl; the calls that
# are refused.
_MACHINES = {
    "x86_64": (
        0xC000003E,
        {2: 1, 257: 2},
        (72, 16),
        # socket .. socketpair, clone .. execve, kill
        "41 42 43 44 46 48 49 50 53 56 57 58 59 62 "
        # truncate, rename .. lchown, ptrace, utime, mknod, mount, chroot
        "76 77 82 83 84 85 86 87 88 90 91 92 93 94 101 132 133 161 165 166 "
        # xattrs, signals, times, memory and queues that are shared
        "188 189 190 197 198 199 200 234 129 297 235 29 30 31 64 65 66 220 68 69 70 71 240 241 "
        # the *at calls, unshare, setns, bpf, limits, other processes' memory, prctl
        "258 259 260 261 263 264 265 266 268 272 280 285 288 302 304 307 308 310 311 316 321 322 "
        # prctl, how other processes are scheduled and placed, keys
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
"""Numbers from here on are the same on every machine; those not known here are refused."""
# close_range, faccessat2, epoll_pwait2, the futexes, mseal
_HARMLESS_NEW = (436, 439, 441, 449, 454, 455, 456, 462)
# What duplicates, reads and sets the flags of a descriptor. Not: who is sent its signals, leases.
_FCNTL = (0, 1, 2, 3, 4, 1030)
# Whether it is a terminal and how wide, what can be read, whether it waits, whether it is passed
# on. Not: the attributes of a file.
_IOCTL = (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def filter_program() -> bytes | None:
    """The program for this machine; None where there is none."""
    machine = _MACHINES.get(platform.machine())
    if machine is None or platform.system() != "Linux":
        return None
    architecture, opening, (fcntl, ioctl), refused = machine
    return b"".join(
        [
            *_of_machine(architecture),
            *(step for number in refused.split() for step in _refused(int(number))),
            *(step for call in opening.items() for step in _reading_only(*call)),
            *_only_with(fcntl, _FCNTL),
            *_only_with(ioctl, _IOCTL),
            *_known(_HARMLESS_NEW),
        ]
    )


def _of_machine(architecture: int) -> Iterator[bytes]:
    yield _one(LOAD, ARCHITECTURE)
    yield _one(EQUAL, architecture, yes=1)
    yield _one(RETURN, KILL)
    yield _one(LOAD, NUMBER)
    yield _one(AT_LEAST, X32, no=1)
    yield _one(RETURN, KILL)


def _refused(number: int) -> Iterator[bytes]:
    yield _one(EQUAL, number, no=1)
    yield _one(RETURN, REFUSE)


def _reading_only(number: int, place: int) -> Iterator[bytes]:
    """A call that opens a file, with its flags at ``place``."""
    yield _one(EQUAL, number, no=4)
    yield _one(LOAD, ARGUMENTS + 8 * place)
    yield _one(ANY_BIT, WRITING, no=1)
    yield _one(RETURN, REFUSE)
    yield _one(RETURN, ALLOW)


def _only_with(number: int, commands: Sequence[int]) -> Iterator[bytes]:
    """A call whose second argument is one of ``commands``."""
    yield _one(EQUAL, number, no=2 * len(commands) + 2)
    yield _one(LOAD, ARGUMENTS + 8)
    for command in commands:
        yield _one(EQUAL, command, no=1)
        yield _one(RETURN, ALLOW)
    yield _one(RETURN, REFUSE)


def _known(harmless: Sequence[int]) -> Iterator[bytes]:
    """All that are not new, and of the new ones those."""
    yield _one(AT_LEAST, NEW, yes=1)
    yield _one(RETURN, ALLOW)
    for number in harmless:
        yield _one(EQUAL, number, no=1)
        yield _one(RETURN, ALLOW)
    yield _one(RETURN, REFUSE)


def _one(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """A struct sock_filter; a jump skips ``yes`` or ``no`` instructions."""
    return struct.pack("=HBBI", code, yes, no, value)
