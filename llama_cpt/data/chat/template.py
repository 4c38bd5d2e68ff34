"""Chat templates, which render messages to tokens and report the spans of the assistant's turns.

Special tokens come only from the template. Text such as ``<|eot_id|>`` in a message is encoded as
ordinary text: marks are put around it before the template renders the message.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
import json
import re
from typing import Literal

from etils import epath
from jaxtyping import Bool, UInt32
import numpy as np

from llama_cpt.data.chat.conversations import MARKS, InvalidRecordError, Message
from llama_cpt.data.chat.jinja import JinjaTemplate
from llama_cpt.data.tokenizer.tokenizer import Tokenizer
from llama_cpt.runtime.errors import UserError

LLAMA3 = "llama3"
LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3_JINJA = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
"""Jinja source equivalent to ``Llama3Template``, for the export of trained models."""
# Marks around the name of a special token that occurs in a message as ordinary text.
TEXT, END_TEXT = MARKS[:2]
_PROBE = (
    Message("user", "a"),
    Message("assistant", "b"),
    Message("user", "c"),
    Message("assistant", "d"),
)

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendering:
    """A conversation rendered to tokens."""

    tokens: UInt32[np.ndarray, " tokens"]
    special: Bool[np.ndarray, " tokens"]
    """True for special tokens."""
    assistant_spans: tuple[Span, ...]
    """Token range (start, end) of each assistant turn: its content and its end token."""


class Llama3Template:
    """The chat template of Llama 3 (meta-llama/llama-models, ``models/llama3/chat_format.py``).

    ``bos`` is the text of the tokenizer's BOS token.
    """

    fingerprint = LLAMA3

    def __init__(self, bos: str) -> None:
        self._bos = bos

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """Return ``messages`` as text.

        With ``generation_prompt``, the text ends with the header of the next assistant turn.
        """
        turns = [f"{self._header(m.role)}{m.content.strip()}<|eot_id|>" for m in messages]
        return "".join([self._bos, *turns, self._header("assistant") * generation_prompt])

    def render_with_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return the rendered text and the character range of each assistant turn."""
        text, spans = self._bos, []
        for message in messages:
            text += self._header(message.role)
            start = len(text)
            text += f"{message.content.strip()}<|eot_id|>"
            if message.role == "assistant":
                spans.append((start, len(text)))
        return text, spans

    def _header(self, role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


class ChatTemplate:
    """A chat template and the tokenizer that encodes the rendered text."""

    def __init__(self, template: Llama3Template | JinjaTemplate, tokenizer: Tokenizer) -> None:
        self.fingerprint = template.fingerprint
        self._template, self._tokenizer = template, tokenizer

    def render(self, messages: Sequence[Message]) -> Rendering:
        """Return ``messages`` as tokens.

        Raises InvalidRecordError if the template rejects the messages.
        """
        text, spans = self._template.render_with_spans(self._mark(messages))
        spans = [(start, self._end_of_turn(text, start, end)) for start, end in spans]
        tokens, special, spoken = [], [], []
        # Pieces with an odd number are the assistant's turns. Each piece between two borders is
        # encoded separately, so that no token crosses the border of a turn.
        borders = [0, *(border for span in spans for border in span), len(text)]
        for number, (start, end) in enumerate(zip(borders, borders[1:], strict=False)):
            before = len(tokens)
            for part, is_special in self._encode_runs(text[start:end]):
                tokens += part
                special += [is_special] * len(part)
            if number % 2:
                spoken.append((before, len(tokens)))
        return Rendering(np.array(tokens, np.uint32), np.array(special, bool), tuple(spoken))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of ``messages`` followed by the header of the next assistant turn.

        Raises UserError if the template rejects the messages.
        """
        return self.encode(self.prompt_text(messages))

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Return ``messages`` and the header of the next assistant turn as text for ``encode``.

        Names of special tokens in messages are enclosed in marks, so that ``encode`` treats them as
        ordinary text. Raises UserError if the template rejects the messages.
        """
        try:
            return self._template.render(self._mark(messages), generation_prompt=True)
        except InvalidRecordError as error:
            raise UserError(f"the chat template rejects these messages: {error.detail}.") from None

    def encode(self, text: str) -> list[int]:
        """Return the tokens of ``text``.

        ``text`` is a result of ``prompt_text``, optionally with ordinary text appended.
        """
        return [token for part, _ in self._encode_runs(text) for token in part]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer: the template's end-of-turn token and EOS."""
        rendering = self.render(_PROBE)
        end = rendering.assistant_spans[-1][1] - 1
        turn = (int(rendering.tokens[end]),) if rendering.special[end] else ()
        return (*turn, self._tokenizer.eos_id)

    def check(self) -> None:
        """Raise UserError if the template cannot be used for training with this tokenizer."""
        try:
            text, spans = self._template.render_with_spans(_PROBE)
        except InvalidRecordError as error:
            raise UserError(
                f"chat template of {self._tokenizer.path}: it rejects a conversation of two "
                f"questions and answers ({error.detail}); set data.chat.template=llama3."
            ) from None
        answers = [text[start:end] for start, end in spans]
        if len(answers) != 2 or "b" not in answers[0] or "d" not in answers[1]:
            raise UserError(
                f"chat template of {self._tokenizer.path}: the assistant's turns cannot be "
                "found; set data.chat.template=llama3, or mark them with {% generation %}."
            )
        for name in re.findall(r"<\|[^|<>\s]+\|>", text):
            if self._tokenizer.special_id(name) is None:
                raise UserError(
                    f"{self._tokenizer.path} has no token {name}, which the chat template writes; "
                    "set data.tokenizer to the model's own tokenizer."
                )

    def _mark(self, messages: Sequence[Message]) -> list[Message]:
        names = self._names
        return [Message(m.role, names.sub(f"{TEXT}\\g<0>{END_TEXT}", m.content)) for m in messages]

    def _end_of_turn(self, text: str, start: int, end: int) -> int:
        """Return the index at which a turn ends, before the line break that ChatML adds to it."""
        bare = text[start:end].rstrip()
        last = re.search(f"(?:{self._names.pattern})$", bare)
        return start + len(bare) if last else end

    def _encode_runs(self, text: str) -> Iterator[tuple[list[int], bool]]:
        """Yield the ids of each run of ordinary text and of each special token.

        The second item of each pair is True for a special token.
        """
        run, at = "", 0
        for found in self._marked_or_special.finditer(text):
            run += text[at : found.start()]
            at = found.end()
            if found["special"]:
                if run:
                    yield self._tokenizer.encode(run), False
                run = ""
                yield [self._tokenizer.special_tokens[found["special"]]], True
            else:
                run += found["text"] or ""
        if run := run + text[at:]:
            yield self._tokenizer.encode(run), False

    @cached_property
    def _names(self) -> re.Pattern[str]:
        """Pattern that matches the name of any special token."""
        names = sorted(self._tokenizer.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or "(?!)")

    @cached_property
    def _marked_or_special(self) -> re.Pattern[str]:
        """Pattern that matches a special token, or the name of a special token between marks."""
        name = self._names.pattern
        # A template that truncates text can leave a single mark, which is dropped.
        marked = f"{TEXT}(?P<text>{name}){END_TEXT}|[{TEXT}{END_TEXT}]"
        return re.compile(f"{marked}|(?P<special>{name})")


def load_chat_template(tokenizer: Tokenizer, choice: Literal["auto", "llama3"]) -> ChatTemplate:
    """Return the chat template that ``choice``, the value of ``data.chat.template``, selects.

    Raises UserError if the template cannot be used for training with ``tokenizer``.
    """
    text = find_template(tokenizer.path) if choice == "auto" else None
    bos, eos = (tokenizer.decode([one]) for one in (tokenizer.bos_id, tokenizer.eos_id))
    if text is None:
        for name in LLAMA3_TOKENS:
            if tokenizer.special_id(name) is None:
                raise UserError(
                    f"{tokenizer.path} has no token {name}, which Llama 3's chat template needs, "
                    "and there is no other chat template next to it; set data.tokenizer to a "
                    "tokenizer that has one of the two."
                )
        template = ChatTemplate(Llama3Template(bos), tokenizer)
    else:
        template = ChatTemplate(JinjaTemplate(text, bos, eos, tokenizer.path), tokenizer)
    template.check()
    return template


@lru_cache(1)
def template_by_fingerprint(tokenizer: Tokenizer, fingerprint: str) -> ChatTemplate:
    """Return the chat template of ``tokenizer`` if the template has this ``fingerprint``.

    The last result is cached. Raises UserError if the template on disk has a different fingerprint.
    """
    template = load_chat_template(tokenizer, LLAMA3 if fingerprint == LLAMA3 else "auto")
    if template.fingerprint != fingerprint:
        raise UserError(
            f"the chat template of {tokenizer.path} changed while it was in use; run prepare again."
        )
    return template


def find_template(vocabulary: str) -> str | None:
    """Return the Jinja source of the chat template for a vocabulary file; None if not found.

    The template is read from the folder of the vocabulary and, if the folder is named ``original``,
    from its parent.
    """
    folder = epath.Path(vocabulary).parent
    for parent in (folder, folder.parent) if folder.name == "original" else (folder,):
        file = parent / "chat_template.jinja"
        if file.is_file():
            return file.read_text("utf-8")
        file = parent / "tokenizer_config.json"
        if file.is_file() and (found := json.loads(file.read_text("utf-8")).get("chat_template")):
            return found if isinstance(found, str) else _default(found, file)
    return None


def _default(templates: list[dict[str, str]], file: epath.Path) -> str:
    """Return the template named ``default``; raise UserError if there is no such template."""
    for template in templates:
        if template.get("name") == "default":
            return template["template"]
    raise UserError(f"{file}: no chat template is named 'default'; rename one of them.")
