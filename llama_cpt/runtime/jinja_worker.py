"""A process that renders untrusted Jinja templates with limits on time, memory and output.

``jinja_runner.py`` calls ``main`` in a new process. This file imports only Jinja and the standard
library, so that the process starts in a fraction of a second.

A request on stdin is 8 bytes with its length, then a ``marshal`` dump of the maximum seconds, the
name of an environment, the source of a template, and a list of contexts. A context is a dict with
the variables of one rendering. A reply on stdout is 8 bytes with its length, then for each context
a status (one byte), the length of a text (8 bytes) and the text. A reply ends after the first
status other than ``TEXT``, and after ``REPLY_BYTES``.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import datetime
from functools import lru_cache
import json
import marshal
import re
import resource
import signal
import struct
import sys
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

SECONDS = 5.0
"""Maximum wall time of one rendering, including the compilation of its template."""
MEMORY_BYTES = 1 << 30
"""Maximum address space of the process, if the operating system enforces the limit."""
OUTPUT_CHARACTERS = 1 << 26
"""Maximum length of a rendered text."""
REPLY_BYTES = 1 << 22
"""Size after which a reply ends, so that many long texts are not in memory at the same time."""
ERROR_CHARACTERS = 500
"""Maximum length of an error message."""
LARGEST_POWER_BITS = 1 << 16
"""Maximum number of bits of the result of ``**``."""
CHAT, TASK = "chat", "task"
"""Names of the environments: chat templates, and templates in task files of benchmarks."""
# Statuses of a rendering.
TEXT, REFUSED, SYNTAX, UNSAFE, MEMORY, SIZE, ERROR = b"T", b"R", b"S", b"U", b"M", b"O", b"E"
LENGTH = struct.Struct("<Q")
STATUS = struct.Struct("<cQ")

# Marks at the start and the end of the text of a {% generation %} block.
GENERATION, END_GENERATION = "\ufdd2", "\ufdd3"
# Templates receive this date, the default of Llama 3.1, as the current date. With the actual date,
# rows would depend on the day on which they are prepared.
TODAY = datetime.datetime(2024, 7, 26)


class _Refusal(jinja2.TemplateError):
    """The error that a template raises when it calls ``raise_exception``."""


class _TooLong(Exception):  # noqa: N818
    """The error for a rendered text of more than ``OUTPUT_CHARACTERS``."""


class _Generation(jinja2.ext.Extension):
    """Jinja extension that inserts marks around the text of ``{% generation %}`` blocks."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.CallBlock:
        """Return a node that passes the text of the block to ``_mark``."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body)
        block.set_lineno(line)
        return block

    def _mark(self, caller: Any) -> str:
        return f"{GENERATION}{caller()}{END_GENERATION}"


class _Bounded(jinja2.sandbox.SandboxedEnvironment):
    """A sandbox in which ``*`` and ``**`` cannot create huge values.

    The memory limit would stop these operations only on systems that enforce the limit.
    """

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the result of an operator; raise MemoryError if it would be huge."""
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > LARGEST_POWER_BITS:
                raise MemoryError
        elif operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, str | bytes | list | tuple) and isinstance(count, int):
                    item = 1 if isinstance(sequence, str | bytes) else 8
                    if item * len(sequence) * count > MEMORY_BYTES:
                        raise MemoryError
        return super().call_binop(context, operator, left, right)


class _ImmutableBounded(_Bounded, jinja2.sandbox.ImmutableSandboxedEnvironment):
    """A bounded sandbox in which templates cannot change lists and dicts."""


class _Dict:
    """The template function ``dict``, without the attributes of the class, as in transformers."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return ``dict.fromkeys(*args)``."""
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """The template function ``namespace``, without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"namespace attribute {name!r}")
        super().__setitem__(name, value)


def main() -> None:
    """Answer requests until the end of stdin."""
    # Ctrl-C interrupts the command that started this process, which then decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The default action ends the process, even in the middle of a call into C.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    for limit, value in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(header := source.read(LENGTH.size)) == LENGTH.size:
        try:
            parts = _answer(source.read(*LENGTH.unpack(header)))
            reply = b"".join([LENGTH.pack(sum(map(len, parts))), *parts])
        except MemoryError:
            reply = LENGTH.pack(STATUS.size) + STATUS.pack(MEMORY, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sink.write(reply)
        sink.flush()


def _answer(request: bytes) -> list[bytes]:
    """Return the parts of the reply to a request."""
    parts: list[bytes] = []
    size = 0
    for status, text in _results(*marshal.loads(request)):
        content = text.encode("utf-8", "surrogatepass")
        parts += [STATUS.pack(status, len(content)), content]
        size += len(content)
        if size > REPLY_BYTES:
            break
    return parts


def _results(
    seconds: float, name: str, source: str, contexts: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[bytes, str]]:
    """Yield the status and the text of each rendering, up to the first failure.

    Without contexts, the template is only compiled, and the result is empty if it is valid.
    """
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        template = _compile(name, source)
        for context in contexts:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            yield TEXT, _render(template, context)
    except _TooLong:
        yield SIZE, ""
    except _Refusal as error:
        yield REFUSED, _message(error)
    except jinja2.TemplateSyntaxError as error:
        yield SYNTAX, f"{error.lineno}: {_message(error)}"
    except jinja2.exceptions.SecurityError as error:
        yield UNSAFE, _message(error)
    except MemoryError:
        raise
    except Exception as error:  # A template is a program and can raise any error.
        yield ERROR, f"{type(error).__name__}: {_message(error)}"


@lru_cache(64)
def _compile(name: str, source: str) -> jinja2.Template:
    return ENVIRONMENTS[name].from_string(source)


def _render(template: jinja2.Template, context: Mapping[str, Any]) -> str:
    parts, size = [], 0
    for part in template.generate(context):
        parts.append(part)
        size += len(part)
        if size > OUTPUT_CHARACTERS:
            raise _TooLong
    return "".join(parts)


def _message(error: Exception) -> str:
    message = error.message if isinstance(error, jinja2.TemplateError) else str(error)
    return (message or "")[:ERROR_CHARACTERS]


def _chat_environment() -> jinja2.Environment:
    """Return an environment with the names and settings of ``apply_chat_template``."""
    environment = _ImmutableBounded(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": TODAY.strftime,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


def _task_environment() -> jinja2.Environment:
    """Return an environment with the names and settings of lm-evaluation-harness."""
    environment = _Bounded(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = _regex_replace
    return environment


def _refuse(message: Any = "") -> None:
    raise _Refusal(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return ``value`` as JSON without HTML escapes, as in ``transformers``."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _regex_replace(string: str, pattern: str, repl: str, count: int = 0) -> str:
    return re.sub(pattern, repl, string, count=count)


ENVIRONMENTS = {CHAT: _chat_environment(), TASK: _task_environment()}
