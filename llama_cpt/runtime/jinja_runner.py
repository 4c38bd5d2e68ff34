"""A runner of untrusted Jinja templates, in a process with limits on time, memory and output.

Each process of a command has its own runner, which starts at the first rendering and ends with the
process that started it. ``jinja_worker.py`` is the code of the runner.
"""

import atexit
from collections.abc import Mapping, Sequence
import contextlib
import marshal
from multiprocessing import util
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
from typing import Any, Literal

from llama_cpt.runtime import jinja_worker as worker
from llama_cpt.runtime.errors import UserError

Environment = Literal["chat", "task"]
"""The kind of a template, which determines its settings and functions: a chat template, or a
template of a benchmark task."""

# The file runs without its package, because the package would import more modules. -P is set,
# because a module in the current folder could have the name of a module of the standard library.
_MAIN = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='jinja_worker')['main']()"
_FAILURES = {
    worker.MEMORY: f"needs more than {worker.MEMORY_BYTES >> 30} GB; simplify the template",
    worker.SIZE: f"writes more than {worker.OUTPUT_CHARACTERS:,} characters; simplify the template",
    worker.UNSAFE: "unsafe operation in the template (%s)",
}


class TemplateError(UserError):
    """The error for a template that cannot be rendered.

    The message does not name the file of the template, which the runner does not know.
    """

    line: int | None = None
    """Number of the line with a syntax error; None for all other errors."""


class TemplateRefusalError(TemplateError):
    """The error for a template that called ``raise_exception``, with the template's message."""


def render(
    environment: Environment, source: str, contexts: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return the text of the template ``source`` for each context, a dict of its variables.

    Without contexts, the template is only compiled. A value that is not plain data is replaced by
    its text. Raises TemplateRefusalError if the template calls ``raise_exception``, and
    TemplateError if the template is invalid, unsafe or exceeds a limit.
    """
    texts: list[str] = []
    while True:
        rest = [dict(context) for context in contexts[len(texts) :]]
        texts += _parse(_reply(_dump((worker.SECONDS, environment, source, rest))))
        if len(texts) == len(contexts):
            return texts


def close() -> None:
    """End the runner of this process; the next rendering starts a new one."""
    global _process
    if _process is not None:
        process, _process = _process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class _EndedError(Exception):
    """The error for a runner that ended during a request, with its exit ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None


def _reply(request: bytes) -> bytes:
    """Return the reply to a request; raise TemplateError if the template ends the runner."""
    status = 0
    # If something else ended the runner, such as the operating system for lack of memory, the
    # request is sent to a new runner once.
    for _ in range(2):
        try:
            with _lock:
                return _exchange(request)
        except _EndedError as error:
            status = error.status
        if status == -signal.SIGALRM:
            raise TemplateError(f"runs longer than {worker.SECONDS:g} s; simplify the template")
    raise TemplateError(
        f"the process that renders it ended with status {status}; simplify the template"
    )


def _start() -> None:
    global _process
    command = [sys.executable, "-P", "-c", _MAIN, str(Path(worker.__file__))]
    _process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # A process of a multiprocessing pool calls finalizers, but no functions of atexit.
    util.Finalize(None, close, exitpriority=10)


def _exchange(request: bytes) -> bytes:
    """Send a request to the runner and return the reply; raise _EndedError if the runner ends."""
    if _process is None:
        _start()
    process = _process
    assert process is not None and process.stdin is not None and process.stdout is not None
    try:
        _write(process.stdin.fileno(), worker.LENGTH.pack(len(request)) + request)
        (size,) = worker.LENGTH.unpack(_read(process.stdout.fileno(), worker.LENGTH.size))
        return _read(process.stdout.fileno(), size)
    except (EOFError, BrokenPipeError):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        close()
        raise _EndedError(process.returncode) from None
    except BaseException:
        # The rest of the reply would be read as the reply to the next request.
        close()
        raise


def _write(pipe: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def _read(pipe: int, size: int) -> bytes:
    """Return ``size`` bytes; raise EOFError if the pipe has fewer."""
    parts = []
    while size:
        # os.read allocates the maximum size first.
        parts.append(os.read(pipe, min(size, 1 << 20)))
        size -= len(parts[-1])
        if not parts[-1]:
            raise EOFError
    return b"".join(parts)


def _parse(reply: bytes) -> list[str]:
    """Return the texts of a reply; raise TemplateError if a rendering failed."""
    texts, view, start = [], memoryview(reply), 0
    while start < len(reply):
        status, size = worker.STATUS.unpack_from(reply, start)
        start += worker.STATUS.size
        text = str(view[start : start + size], "utf-8", "surrogatepass")
        start += size
        if status == worker.TEXT:
            texts.append(text)
        elif status == worker.REFUSED:
            raise TemplateRefusalError(text)
        elif status == worker.SYNTAX:
            line, _, message = text.partition(": ")
            error = TemplateError(message)
            error.line = int(line)
            raise error
        else:
            raise TemplateError(_FAILURES.get(status, "%s").replace("%s", text))
    return texts


def _dump(request: Any) -> bytes:
    try:
        return marshal.dumps(request)
    except ValueError:
        # ``marshal`` cannot store a value that is not plain data or is nested too deeply.
        pass
    try:
        return marshal.dumps(_plain(request))
    except (RecursionError, ValueError):
        raise TemplateError("the values that it renders are nested too deeply") from None


def _plain(value: Any) -> Any:
    """Return ``value`` with each object that is not of a JSON type replaced by its text.

    The sandbox does not know which methods of these objects are dangerous.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, list | set | frozenset):
        return list(map(_plain, value))
    return str(value)


def _forget() -> None:
    """Close the copies of the runner's pipes in a forked process, which starts its own runner."""
    global _process, _lock
    _lock = threading.Lock()
    if _process is not None:
        process, _process = _process, None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        # Otherwise, subprocess would warn that the process still runs.
        process.returncode = 0


os.register_at_fork(after_in_child=_forget)
atexit.register(close)
