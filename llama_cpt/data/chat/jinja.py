"""Chat templates in Jinja, in a sandbox, with the names that ``transformers`` gives them."""

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

# Around what a template puts between {% generation %} and {% endgeneration %}.
SPOKEN, END_SPOKEN = MARKS[2:]
# Rows must not depend on the day they are made on: Llama 3.1's own default for today's date.
TODAY = datetime.datetime(2024, 7, 26)

Span = tuple[int, int]


class _Refusal(jinja2.TemplateError):
    """What ``raise_exception`` raises."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``: its text comes out between marks."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.CallBlock:
        """A call of ``_mark`` around the block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{SPOKEN}{caller()}{END_SPOKEN}"


class JinjaTemplate:
    """A template's text, compiled; ``place`` names it in errors."""

    def __init__(self, text: str, bos: str, eos: str, place: str) -> None:
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._place = f"chat template of {place}"
        self._names = {"bos_token": bos, "eos_token": eos}
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = TODAY.strftime
        with self._legible():
            self._template = environment.from_string(text)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The text that the model reads. Raises BadRecordError where the template refuses it."""
        marked = self._rendered(messages, generation_prompt)
        return marked.replace(SPOKEN, "").replace(END_SPOKEN, "")

    def render_with_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The rendered text, and where in it the assistant speaks.

        Where the template does not mark that: what it adds to the generation prompt when the
        answer is there. Raises UserError where a turn's text depends on what comes after.
        """
        text = self._rendered(messages, False)
        if SPOKEN in text:
            return _unmarked(text)
        spans = []
        for number, message in enumerate(messages):
            if message.role == "assistant":
                prompt = self._rendered(messages[:number], True)
                so_far = self._rendered(messages[: number + 1], False)
                if not (so_far.startswith(prompt) and text.startswith(so_far)):
                    raise UserError(
                        f"{self._place}: what it writes of a turn depends on later turns, so the "
                        "assistant's cannot be told apart: mark them in it with {% generation %}, "
                        "or set data.chat.template=llama3."
                    )
                spans.append((len(prompt), len(so_far)))
        return text, spans

    def _rendered(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        with self._legible():
            return self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=generation_prompt,
                tools=None,
                documents=None,
                **self._names,
            )

    @contextlib.contextmanager
    def _legible(self) -> Iterator[None]:
        try:
            yield
        except _Refusal as error:
            raise InvalidRecordError("the chat template refuses it", str(error)) from None
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{self._place}:{error.lineno}: {error.message}.") from None
        except jinja2.sandbox.SecurityError as error:
            raise UserError(f"{self._place}: it leaves its sandbox ({error}).") from None
        except Exception as error:  # It is a program of others: whatever it raises is theirs.
            raise UserError(f"{self._place}: {type(error).__name__}: {error}.") from None


def _unmarked(text: str) -> tuple[str, list[Span]]:
    """The text without marks, and what was between them."""
    plain, spans, start = "", [], 0
    for part in re.split(f"([{SPOKEN}{END_SPOKEN}])", text):
        if part == SPOKEN:
            start = len(plain)
        elif part == END_SPOKEN:
            spans.append((start, len(plain)))
        else:
            plain += part
    return plain, spans


def _refuse(message: str) -> None:
    raise _Refusal(message)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    """Without Jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)
