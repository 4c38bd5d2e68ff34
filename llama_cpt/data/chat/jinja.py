"""Jinja chat templates, rendered in a sandbox with the variables that ``transformers`` sets."""

from collections.abc import Generator, Sequence
import contextlib
import datetime
import hashlib
import json
import re
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from llama_cpt.data.chat.conversations import MARKS, InvalidRecordError, Message
from llama_cpt.runtime.errors import UserError

# Marks at the start and the end of the text of a {% generation %} block.
GENERATION, END_GENERATION = MARKS[2:]
# Templates receive this date, the default of Llama 3.1, as the current date. With the actual date,
# rows would depend on the day on which they are prepared.
TODAY = datetime.datetime(2024, 7, 26)

Span = tuple[int, int]


class _Refusal(jinja2.TemplateError):
    """The error that a template raises when it calls ``raise_exception``."""


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


class JinjaTemplate:
    """A compiled Jinja chat template; error messages contain its ``path``."""

    def __init__(self, text: str, bos: str, eos: str, path: str) -> None:
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._label = f"chat template of {path}"
        self._names = {"bos_token": bos, "eos_token": eos}
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = TODAY.strftime
        with self._translate_errors():
            self._template = environment.from_string(text)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """Return ``messages`` as text.

        With ``generation_prompt``, the text ends with the header of the next assistant turn. Raises
        InvalidRecordError if the template rejects the messages.
        """
        marked = self._render(messages, generation_prompt)
        return marked.replace(GENERATION, "").replace(END_GENERATION, "")

    def render_with_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return the rendered text and the character range of each assistant turn.

        If the template has no ``{% generation %}`` block, the range of a turn starts after the
        header of the turn and extends to the next turn. Raises InvalidRecordError if the template
        rejects the messages, and UserError if the text of a turn depends on later turns.
        """
        text = self._render(messages, False)
        if GENERATION in text:
            return _strip_marks(text)
        spans = []
        for number, message in enumerate(messages):
            if message.role == "assistant":
                prompt = self._render(messages[:number], True)
                so_far = self._render(messages[: number + 1], False)
                if not (so_far.startswith(prompt) and text.startswith(so_far)):
                    raise UserError(
                        f"{self._label}: the text of a turn depends on later turns, so the "
                        "assistant's turns cannot be found; mark them with {% generation %} or "
                        "set data.chat.template=llama3."
                    )
                spans.append((len(prompt), len(so_far)))
        return text, spans

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        with self._translate_errors():
            return self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=generation_prompt,
                tools=None,
                documents=None,
                **self._names,
            )

    @contextlib.contextmanager
    def _translate_errors(self) -> Generator[None]:
        """Context manager that turns template errors into InvalidRecordError or UserError."""
        try:
            yield
        except _Refusal as error:
            raise InvalidRecordError("the chat template refuses it", str(error)) from None
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self._label}:{error.lineno}: {error.message}.") from None
        except jinja2.exceptions.SecurityError as error:
            raise UserError(f"{self._label}: unsafe operation in the template ({error}).") from None
        except Exception as error:  # A template is a program and can raise any error.
            raise UserError(f"{self._label}: {type(error).__name__}: {error}.") from None


def _strip_marks(text: str) -> tuple[str, list[Span]]:
    """Return the text without marks, and the character range between each pair of marks."""
    plain, spans, start = "", [], 0
    for part in re.split(f"([{GENERATION}{END_GENERATION}])", text):
        if part == GENERATION:
            start = len(plain)
        elif part == END_GENERATION:
            spans.append((start, len(plain)))
        else:
            plain += part
    return plain, spans


def _refuse(message: str) -> None:
    raise _Refusal(message)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    """Return ``value`` as JSON without HTML escapes, as in ``transformers``."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)
