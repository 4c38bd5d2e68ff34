"""Messages to tokens by a chat template, and which of the tokens the assistant says.

A template is trusted with special tokens, text is not: ``<|eot_id|>`` in a message is encoded as
ordinary text. For that, names of special tokens in messages go through the template between marks,
as in ``transformers``.
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
"""``Llama3Template`` for those who have only Jinja: it goes with an exported model."""
# Around a special token's name that is only text.
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
    """Special tokens."""
    assistant_spans: tuple[Span, ...]
    """Where each assistant turn's content and end token lie."""


class Llama3Template:
    """Llama-3's own (meta-llama/llama-models, ``models/llama3/chat_format.py``).

    ``bos`` is the name of the tokenizer's BOS.
    """

    fingerprint = LLAMA3

    def __init__(self, bos: str) -> None:
        self._bos = bos

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The text that the model reads."""
        turns = [f"{self._header(m.role)}{m.content.strip()}<|eot_id|>" for m in messages]
        return "".join([self._bos, *turns, self._header("assistant") * generation_prompt])

    def render_with_spans(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The rendered text, and where in it the assistant speaks: content and end token."""
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
    """A template and the tokenizer that it writes for."""

    def __init__(self, template: Llama3Template | JinjaTemplate, tokenizer: Tokenizer) -> None:
        self.fingerprint = template.fingerprint
        self._template, self._tokenizer = template, tokenizer

    def render(self, messages: Sequence[Message]) -> Rendering:
        """Tokens of ``messages``; raises BadRecordError where the template refuses them."""
        text, spans = self._template.render_with_spans(self._marked(messages))
        spans = [(start, self._said(text, start, end)) for start, end in spans]
        tokens, special, spoken = [], [], []
        borders = [0, *(place for span in spans for place in span), len(text)]
        for number, (start, end) in enumerate(zip(borders, borders[1:], strict=False)):
            before = len(tokens)
            for part, is_special in self._encoded(text[start:end]):
                tokens += part
                special += [is_special] * len(part)
            if number % 2:
                spoken.append((before, len(tokens)))
        return Rendering(np.array(tokens, np.uint32), np.array(special, bool), tuple(spoken))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of ``messages`` up to where the assistant begins to answer.

        Raises UserError where the template refuses them.
        """
        return self.encode(self.prompt_text(messages))

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """``prompt`` as text for ``encode``, in which marks tell text from special tokens."""
        try:
            return self._template.render(self._marked(messages), generation_prompt=True)
        except InvalidRecordError as error:
            raise UserError(f"the chat template refuses this: {error.detail}.") from None

    def encode(self, text: str) -> list[int]:
        """Tokens of what ``prompt_text`` made, and of ordinary text behind it."""
        return [token for part, _ in self._encoded(text) for token in part]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends an answer: the template's end of a turn, and EOS."""
        rendering = self.render(_PROBE)
        end = rendering.assistant_spans[-1][1] - 1
        turn = (int(rendering.tokens[end]),) if rendering.special[end] else ()
        return (*turn, self._tokenizer.eos_id)

    def check(self) -> None:
        """Raise UserError for a template that no conversation could be learnt by."""
        try:
            text, spans = self._template.render_with_spans(_PROBE)
        except InvalidRecordError as error:
            raise UserError(
                f"chat template of {self._tokenizer.path}: it refuses a conversation of two "
                f"questions and answers ({error.detail}); set data.chat.template=llama3."
            ) from None
        heard = [text[start:end] for start, end in spans]
        if len(heard) != 2 or "b" not in heard[0] or "d" not in heard[1]:
            raise UserError(
                f"chat template of {self._tokenizer.path}: it does not tell the assistant's turns "
                "apart; set data.chat.template=llama3, or mark them with {% generation %}."
            )
        for name in re.findall(r"<\|[^|<>\s]+\|>", text):
            if self._tokenizer.special_id(name) is None:
                raise UserError(
                    f"{self._tokenizer.path} has no token {name}, which the chat template writes: "
                    "name the model's own tokenizer."
                )

    def _marked(self, messages: Sequence[Message]) -> list[Message]:
        names = self._names
        return [Message(m.role, names.sub(f"{TEXT}\\g<0>{END_TEXT}", m.content)) for m in messages]

    def _said(self, text: str, start: int, end: int) -> int:
        """Where what is said ends: the line break after ChatML's end token is not said."""
        said = text[start:end]
        bare = said.rstrip()
        last = re.search(f"(?:{self._names.pattern})$", bare)
        return start + len(bare) if last else end

    def _encoded(self, text: str) -> Iterator[tuple[list[int], bool]]:
        """Ids of ``text``, special tokens one by one, whether they are special."""
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
        # A template that cuts texts may leave a mark alone.
        marked = f"{TEXT}(?P<text>{name}){END_TEXT}|[{TEXT}{END_TEXT}]"
        return re.compile(f"{marked}|(?P<special>{name})")


def load_chat_template(tokenizer: Tokenizer, choice: Literal["auto", "llama3"]) -> ChatTemplate:
    """The template that ``data.chat.template`` names; raises UserError where it cannot work."""
    text = find_template(tokenizer.path) if choice == "auto" else None
    bos, eos = (tokenizer.decode([one]) for one in (tokenizer.bos_id, tokenizer.eos_id))
    if text is None:
        for name in LLAMA3_TOKENS:
            if tokenizer.special_id(name) is None:
                raise UserError(
                    f"{tokenizer.path} has no token {name}, which Llama-3's chat template needs, "
                    "and no chat_template of its own lies beside it: set data.tokenizer to one "
                    "with it."
                )
        template = ChatTemplate(Llama3Template(bos), tokenizer)
    else:
        template = ChatTemplate(JinjaTemplate(text, bos, eos, tokenizer.path), tokenizer)
    template.check()
    return template


@lru_cache(1)
def template_by_fingerprint(tokenizer: Tokenizer, fingerprint: str) -> ChatTemplate:
    """The template with ``fingerprint``, in whatever process."""
    template = load_chat_template(tokenizer, LLAMA3 if fingerprint == LLAMA3 else "auto")
    if template.fingerprint != fingerprint:
        raise UserError(f"the chat template of {tokenizer.path} changed while it was being used.")
    return template


def find_template(vocabulary: str) -> str | None:
    """The Jinja template beside a vocabulary file, or in the folder around ``original/``."""
    folder = epath.Path(vocabulary).parent
    for place in (folder, folder.parent) if folder.name == "original" else (folder,):
        file = place / "chat_template.jinja"
        if file.is_file():
            return file.read_text("utf-8")
        file = place / "tokenizer_config.json"
        if file.is_file() and (found := json.loads(file.read_text("utf-8")).get("chat_template")):
            return found if isinstance(found, str) else _default(found, file)
    return None


def _default(templates: list[dict[str, str]], file: epath.Path) -> str:
    """The one of several named templates that is for conversations."""
    for template in templates:
        if template.get("name") == "default":
            return template["template"]
    raise UserError(f"{file}: none of its chat templates is named 'default'.")
