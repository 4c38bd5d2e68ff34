"""Rendering of messages to tokens by a chat template, with the spans of the assistant's turns.

Only the template may write special tokens: ``<|eot_id|>`` in a message is encoded as ordinary text.
To tell the two apart, names of special tokens in messages pass through the template between marks.
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
"""``Llama3Template`` as Jinja source, which is exported with a model."""
# Marks around the name of a special token that occurs in a message and is only text.
TEXT, END_TEXT = MARKS[:2]
_PROBE = tuple(
    Message(role, text)
    for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
)

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendering:
    """A conversation as tokens."""

    tokens: UInt32[np.ndarray, " tokens"]
    special: Bool[np.ndarray, " tokens"]
    """A mask of the special tokens."""
    assistant_spans: tuple[Span, ...]
    """Token range of each assistant turn: content and end token."""


class Llama3Template:
    """The chat template of Llama 3 (meta-llama/llama-models, ``models/llama3/chat_format.py``).

    ``bos`` is the name of the tokenizer's BOS.
    """

    fingerprint = LLAMA3

    def __init__(self, bos: str) -> None:
        self._bos = bos

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """Return the text that the model reads."""
        turns = [f"{self._header(m.role)}{m.content.strip()}<|eot_id|>" for m in messages]
        return "".join([self._bos, *turns, self._header("assistant") * generation_prompt])

    def render_with_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """Return the rendered text and the spans of the assistant's turns with their end tokens."""
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
    """A chat template with the tokenizer that encodes its text."""

    def __init__(self, template: Llama3Template | JinjaTemplate, tokenizer: Tokenizer) -> None:
        self.fingerprint = template.fingerprint
        self._template, self._tokenizer = template, tokenizer

    def render(self, messages: Sequence[Message]) -> Rendering:
        """Return ``messages`` as tokens; raise InvalidRecordError if the template rejects them."""
        text, spans = self._template.render_with_spans(self._mark(messages))
        spans = [(start, self._end_of_turn(text, start, end)) for start, end in spans]
        tokens, special, spoken = [], [], []
        # Odd pieces between the borders are the assistant's. Each piece is encoded by itself, so
        # that no token crosses the border of a span.
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
        """Return the tokens of ``messages`` and of the header of the assistant's next turn.

        Raises UserError if the template rejects the messages.
        """
        return self.encode(self.prompt_text(messages))

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Return ``prompt`` as text for ``encode``, with marks around names of special tokens."""
        try:
            return self._template.render(self._mark(messages), generation_prompt=True)
        except InvalidRecordError as error:
            raise UserError(f"the chat template rejects these messages: {error.detail}.") from None

    def encode(self, text: str) -> list[int]:
        """Return the tokens of text from ``prompt_text``, perhaps with ordinary text appended."""
        return [token for part, _ in self._encode_runs(text) for token in part]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer: the template's end of a turn and EOS."""
        rendering = self.render(_PROBE)
        end = rendering.assistant_spans[-1][1] - 1
        turn = (int(rendering.tokens[end]),) if rendering.special[end] else ()
        return (*turn, self._tokenizer.eos_id)

    def check(self) -> None:
        """Raise UserError if the template does not work for training with this tokenizer."""
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
                    "set data.tokenizer to the model's own."
                )

    def _mark(self, messages: Sequence[Message]) -> list[Message]:
        names = self._names
        return [Message(m.role, names.sub(f"{TEXT}\\g<0>{END_TEXT}", m.content)) for m in messages]

    def _end_of_turn(self, text: str, start: int, end: int) -> int:
        """Return the end of a turn before the line break that ChatML adds to its end token."""
        bare = text[start:end].rstrip()
        last = re.search(f"(?:{self._names.pattern})$", bare)
        return start + len(bare) if last else end

    def _encode_runs(self, text: str) -> Iterator[tuple[list[int], bool]]:
        """Yield the ids of each run of ordinary text and of each special token, and which it is."""
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
    def _names(self) -> re.Pattern:
        names = sorted(self._tokenizer.special_tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or "(?!)")

    @cached_property
    def _marked_or_special(self) -> re.Pattern:
        name = self._names.pattern
        # A template that cuts texts may leave an unpaired mark, which is dropped.
        marked = f"{TEXT}(?P<text>{name}){END_TEXT}|[{TEXT}{END_TEXT}]"
        return re.compile(f"{marked}|(?P<special>{name})")


def load_chat_template(tokenizer: Tokenizer, choice: Literal["auto", "llama3"]) -> ChatTemplate:
    """Return the template for ``data.chat.template``; raise UserError if it does not work."""
    text = find_template(tokenizer.path) if choice == "auto" else None
    bos, eos = (tokenizer.decode([one]) for one in (tokenizer.bos_id, tokenizer.eos_id))
    if text is None:
        for name in LLAMA3_TOKENS:
            if tokenizer.special_id(name) is None:
                raise UserError(
                    f"{tokenizer.path} has no token {name}, which Llama-3's chat template needs, "
                    "and there is no chat_template next to it; set data.tokenizer to one that has "
                    "either."
                )
        template = ChatTemplate(Llama3Template(bos), tokenizer)
    else:
        template = ChatTemplate(JinjaTemplate(text, bos, eos, tokenizer.path), tokenizer)
    template.check()
    return template


@lru_cache(1)
def template_by_fingerprint(tokenizer: Tokenizer, fingerprint: str) -> ChatTemplate:
    """Return the template with ``fingerprint``, loaded again in this process."""
    template = load_chat_template(tokenizer, LLAMA3 if fingerprint == LLAMA3 else "auto")
    if template.fingerprint != fingerprint:
        raise UserError(
            f"the chat template of {tokenizer.path} changed while it was in use; run prepare again."
        )
    return template


def find_template(vocabulary: str) -> str | None:
    """Return the Jinja template next to a vocabulary, or in the parent of ``original/``."""
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
    """Return the template named ``default`` of several named templates."""
    for template in templates:
        if template.get("name") == "default":
            return template["template"]
    raise UserError(f"{file}: none of its chat templates is named 'default'; rename one.")
