"""Jinja chat templates, rendered in a sandbox with the variables that ``transformers`` sets."""

from collections.abc import Mapping, Sequence
import hashlib
import re
from typing import NoReturn

from llama_cpt.data.chat.conversations import InvalidRecordError, Message
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.jinja_runner import TemplateError, TemplateRefusalError, render
from llama_cpt.runtime.jinja_worker import END_GENERATION, GENERATION

Span = tuple[int, int]


class JinjaTemplate:
    """A Jinja chat template.

    ``names`` contains the variables of the template in addition to the messages, such as
    ``bos_token``: the name of each special token. Error messages contain ``label``, the path of the
    file with the template.
    """

    def __init__(self, text: str, names: Mapping[str, str], label: str) -> None:
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._label = f"chat template of {label}"
        self._names = dict(names)
        self.source = text
        try:
            render("chat", text, [])
        except TemplateError as error:
            self._raise(error)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """Return ``messages`` as text.

        With ``generation_prompt``, the text ends with the header of the next assistant turn. Raises
        InvalidRecordError if the template rejects the messages.
        """
        (marked,) = self._render([(messages, generation_prompt)])
        return marked.replace(GENERATION, "").replace(END_GENERATION, "")

    def render_with_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return the rendered text and the character range of each assistant turn.

        If the template has no ``{% generation %}`` block, the range of a turn starts after the
        header of the turn and extends to the next turn. Raises InvalidRecordError if the template
        rejects the messages, and UserError if the text of a turn depends on later turns.
        """
        if "endgeneration" in self.source:
            (text,) = self._render([(messages, False)])
            if GENERATION in text:
                return _strip_marks(text)
        turns = [n for n, message in enumerate(messages) if message.role == "assistant"]
        parts = [((messages[:n], True), (messages[: n + 1], False)) for n in turns]
        text, *found = self._render([(messages, False), *(one for pair in parts for one in pair)])
        spans = []
        for prompt, so_far in zip(found[::2], found[1::2], strict=True):
            if not (so_far.startswith(prompt) and text.startswith(so_far)):
                raise UserError(
                    f"{self._label}: the text of a turn depends on later turns, so the "
                    "assistant's turns cannot be found; mark them with {% generation %} or "
                    "set data.chat.template=llama3."
                )
            spans.append((len(prompt), len(so_far)))
        return text, spans

    def _render(self, prompts: Sequence[tuple[Sequence[Message], bool]]) -> list[str]:
        """Return the text of each pair of messages and ``generation_prompt``."""
        turns: dict[int, dict[str, str]] = {}
        contexts = [
            {
                **self._names,
                # Equal turns are one object, which is sent to the runner once.
                "messages": [
                    turns.setdefault(id(m), {"role": m.role, "content": m.content})
                    for m in messages
                ],
                "add_generation_prompt": generation_prompt,
                "tools": None,
                "documents": None,
            }
            for messages, generation_prompt in prompts
        ]
        try:
            return render("chat", self.source, contexts)
        except TemplateError as error:
            self._raise(error)

    def _raise(self, error: TemplateError) -> NoReturn:
        """Raise InvalidRecordError if the template rejected the turns, otherwise UserError."""
        if isinstance(error, TemplateRefusalError):
            raise InvalidRecordError("the chat template refuses it", str(error)) from None
        at = f"{self._label}:{error.line}" if error.line else self._label
        raise UserError(f"{at}: {error}.") from None


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
