"""Chat templates in Jinja, rendered in a sandbox with the variables that ``transformers`` sets."""

from collections.abc import Iterator, Sequence
import contextlib
import datetime
import hashlib
import json
import re
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from llama_cpt.data.chat.conversations import MARKS, InvalidRecordError, Message
from llama_cpt.runtime.errors import UserError

# Marks around the text that a template puts between {% generation %} and {% endgeneration %}.
GENERATION, END_GENERATION = MARKS[2:]
# Llama 3.1's default for today's date: rows must not depend on the day on which they are prepared.
TODAY = datetime.datetime(2024, 7, 26)

Span = tuple[int, int]


class _Refusal(jinja2.TemplateError):
    """The error that ``raise_exception`` raises in a template."""


class _Generation(jinja2.ext.Extension):
    """The block ``{% generation %}``: puts marks around its text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.CallBlock:
        """Return a call of ``_mark`` around the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{GENERATION}{caller()}{END_GENERATION}"


class JinjaTemplate:
    """A compiled Jinja template; errors quote ``path``."""

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
        """Return the text that the model reads.

        Raises InvalidRecordError if the template rejects the messages.
        """
        marked = self._render(messages, generation_prompt)
        return marked.replace(GENERATION, "").replace(END_GENERATION, "")

    def render_with_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return the rendered text and the spans of the assistant's turns.

        Without ``{% generation %}`` in the template, a turn's span is what the rendering adds to
        the generation prompt. Raises UserError if the text of a turn depends on later turns.
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
    def _translate_errors(self) -> Iterator[None]:
        """Turn the template's errors into InvalidRecordError and UserError."""
        try:
            yield
        except _Refusal as error:
            raise InvalidRecordError("the chat template refuses it", str(error)) from None
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self._label}:{error.lineno}: {error.message}.") from None
        except jinja2.sandbox.SecurityError as error:
            raise UserError(f"{self._label}: unsafe operation in the template ({error}).") from None
        except Exception as error:  # A template is a program of its author and may raise anything.
            raise UserError(f"{self._label}: {type(error).__name__}: {error}.") from None


def _strip_marks(text: str) -> tuple[str, list[Span]]:
    """Return the text without marks, and the spans that were between them."""
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
    """Return ``value`` as JSON without Jinja's HTML escapes, as in ``transformers``."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)
