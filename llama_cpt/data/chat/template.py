"""Chat templates, which render messages to tokens and report the spans of the assistant's turns.

Special tokens come only from the template. Text such as ``<|eot_id|>`` in a message is encoded as
ordinary text: marks are put around it before the template renders the message.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
import re
from typing import Any, Literal, NamedTuple

from etils import epath
from jaxtyping import Bool, UInt32
import numpy as np

from llama_cpt.data.chat.conversations import MARKS, InvalidRecordError, Message
from llama_cpt.data.chat.jinja import JinjaTemplate
from llama_cpt.data.tokenizer.base import TOKENIZER_OPTION, Tokenizer
from llama_cpt.data.tokenizer.settings import CONFIG_FILE, REMEDY
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_bounded, read_json_object

LLAMA3 = "llama3"
TEMPLATE_FILE = "chat_template.jinja"
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
# The characters that special tokens with ``lstrip`` or ``rstrip`` remove.
WHITESPACE = "".join(
    one for one in map(chr, range(0x3001)) if one.isspace() and not "\x1c" <= one <= "\x1f"
)
_PROBE = (
    Message("user", "Question-1"),
    Message("assistant", "Answer-1"),
    Message("user", "Question-2"),
    Message("assistant", "Answer-2"),
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


class _Part(NamedTuple):
    """A special token, or the ordinary text between two special tokens or borders of pieces."""

    piece: int
    """Index of the piece that contains this part."""
    text: str
    is_special: bool = False
    before: str | None = None
    """The ordinary text directly before this part. It is empty after a special token, and None at
    the start of the text."""


class Llama3Template:
    """The chat template of Llama 3 (meta-llama/llama-models, ``models/llama3/chat_format.py``).

    ``bos`` is the text of the tokenizer's BOS token.
    """

    fingerprint = LLAMA3
    source = LLAMA3_JINJA

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
        self.source = template.source
        """Jinja source of the template."""
        self._template, self._tokenizer = template, tokenizer

    def render(self, messages: Sequence[Message]) -> Rendering:
        """Return ``messages`` as tokens.

        Raises InvalidRecordError if the template rejects the messages.
        """
        text, spans = self._template.render_with_spans(self._mark(messages))
        spans = [(start, self._end_of_turn(text, start, end)) for start, end in spans]
        # Pieces with an odd number are the assistant's turns.
        borders = [0, *(border for span in spans for border in span), len(text)]
        pieces = [text[start:end] for start, end in zip(borders, borders[1:], strict=False)]
        tokens, special, ends = [], [], [0] * len(pieces)
        for part in self._parts(pieces):
            ids = self._encode_part(part)
            tokens += ids
            special += [part.is_special] * len(ids)
            ends[part.piece] = len(tokens)
        ends = np.maximum.accumulate(ends).tolist()
        spoken = tuple(zip(ends[::2], ends[1::2], strict=False))
        return Rendering(np.array(tokens, np.uint32), np.array(special, bool), spoken)

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
        return [token for part in self._parts([text]) for token in self._encode_part(part)]

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer: the template's end-of-turn token and EOS."""
        # The token can follow other text that the template writes after each answer.
        _, answer, after = self._render_probe().rpartition(_PROBE[-1].content)
        found = self._names.search(after) if answer else None
        turn = (self._tokenizer.special_tokens[found[0]],) if found else ()
        return tuple(dict.fromkeys((*turn, self._tokenizer.eos_id)))

    @cached_property
    def turn_markers(self) -> frozenset[int]:
        """Ids of the special tokens that the template writes in every turn."""
        counts = Counter(self._names.findall(self._render_probe()))
        turns = len(_PROBE) // 2
        return frozenset(
            self._tokenizer.special_tokens[name] for name, n in counts.items() if n >= turns
        )

    def _render_probe(self) -> str:
        try:
            return self._template.render(_PROBE)
        except InvalidRecordError as error:
            raise UserError(
                f"chat template of {self._tokenizer.path}: it rejects a conversation of two "
                f"questions and answers ({error.detail}); set data.chat.template=llama3."
            ) from None

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
        contents = [message.content for message in _PROBE if message.role == "assistant"]
        found = [content in answer for content, answer in zip(contents, answers, strict=False)]
        if len(answers) != len(contents) or not all(found):
            raise UserError(
                f"chat template of {self._tokenizer.path}: the assistant's turns cannot be "
                "found; set data.chat.template=llama3, or mark them with {% generation %}."
            )
        for name in re.findall(r"<\|[^|<>\s]+\|>", text):
            # An added token that is not special is encoded from ordinary text.
            known = self._tokenizer.special_id(name) is not None
            if not known and len(self._tokenizer.encode(name)) > 1:
                raise UserError(
                    f"{self._tokenizer.path} has no token {name}, which the chat template writes; "
                    f"set data.tokenizer {TOKENIZER_OPTION} to the model's own tokenizer."
                )

    def _mark(self, messages: Sequence[Message]) -> list[Message]:
        names = self._names
        return [Message(m.role, names.sub(f"{TEXT}\\g<0>{END_TEXT}", m.content)) for m in messages]

    def _end_of_turn(self, text: str, start: int, end: int) -> int:
        """Return the index at which a turn ends, before the line break that ChatML adds to it."""
        bare = text[start:end].rstrip()
        last = re.search(f"(?:{self._names.pattern})$", bare)
        return start + len(bare) if last else end

    def _parts(self, pieces: Sequence[str]) -> list["_Part"]:
        """Return the special tokens and the ordinary text in ``pieces``, which form one text.

        The result does not contain the whitespace that special tokens with ``lstrip`` or ``rstrip``
        remove.
        """
        parts: list[_Part] = []
        for number, piece in enumerate(pieces):
            at = 0
            for found in self._marked_or_special.finditer(piece):
                parts.append(_Part(number, piece[at : found.start()]))
                at = found.end()
                name = found["special"]
                parts.append(_Part(number, name or found["text"] or "", is_special=bool(name)))
            parts.append(_Part(number, piece[at:]))
        joined: list[_Part] = []
        for part in parts:
            last = joined[-1] if joined else None
            if last and not (last.is_special or part.is_special) and last.piece == part.piece:
                joined[-1] = last._replace(text=last.text + part.text)
            else:
                joined.append(part)
        self._strip(joined, self._tokenizer.strips_right, str.lstrip)
        joined.reverse()
        self._strip(joined, self._tokenizer.strips_left, str.rstrip)
        joined.reverse()
        kept: list[_Part] = []
        for part in filter(lambda part: part.text, joined):
            before = kept[-1] if kept else None
            kept.append(part._replace(before=before and ("" if before.is_special else before.text)))
        return kept

    def _strip(
        self, parts: list["_Part"], ids: frozenset[int], strip: Callable[[str, str], str]
    ) -> None:
        """Remove whitespace after each special token in ``ids``, in place.

        If ``parts`` is in reverse order, whitespace before each special token is removed.
        """
        removes = False
        for number, part in enumerate(parts):
            if part.is_special:
                removes = self._tokenizer.special_tokens[part.text] in ids
            elif removes:
                parts[number] = part._replace(text=strip(part.text, WHITESPACE))
                removes = not parts[number].text

    def _encode_part(self, part: "_Part") -> list[int]:
        """Return the ids of ``part``; ``part.before`` determines whether a space is added."""
        if part.is_special:
            return [self._tokenizer.special_tokens[part.text]]
        is_first = part.before is None
        if is_first or (not part.before and self._tokenizer.adds_space_after_special):
            return self._tokenizer.encode(part.text)
        return self._tokenizer.encode_after(part.before or "", part.text)

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
    template = find_chat_template(tokenizer, choice)
    if template is None:
        raise UserError(
            f"{tokenizer.path} has no chat template next to it and no tokens of Llama 3's chat "
            f"template ({', '.join(LLAMA3_TOKENS)}); name a tokenizer that has one of the two."
        )
    template.check()
    return template


def find_chat_template(
    tokenizer: Tokenizer, choice: Literal["auto", "llama3"] = "auto"
) -> ChatTemplate | None:
    """Return the chat template that ``choice`` selects, for prompts.

    With ``auto``, the template next to the vocabulary is selected. If no template is next to the
    vocabulary, the template of Llama 3 is selected. The result is None if the tokenizer lacks the
    tokens of Llama 3's template, as the tokenizer of a base model does. Raises UserError if the
    template is not valid Jinja, or if ``choice`` is ``llama3`` and the tokenizer lacks its tokens.
    """
    text = find_template(tokenizer.path) if choice == "auto" else None
    if text is not None:
        if absent := sorted(name for name in tokenizer.absent_names if name in text):
            raise UserError(
                f"{tokenizer.path} has no token {absent[0]!r}, which its config names and its chat "
                "template writes; copy the tokenizer's files again, and prefer tokenizer.json."
            )
        return ChatTemplate(JinjaTemplate(text, tokenizer.names, tokenizer.path), tokenizer)
    missing = [name for name in LLAMA3_TOKENS if tokenizer.special_id(name) is None]
    if not missing:
        return ChatTemplate(Llama3Template(tokenizer.names.get("bos_token", "")), tokenizer)
    if choice == LLAMA3 or len(missing) < len(LLAMA3_TOKENS):
        raise UserError(
            f"{tokenizer.path} has no token {missing[0]}, which Llama 3's chat template needs; "
            "name a tokenizer that has it, or set data.chat.template=auto with a chat template "
            "next to the tokenizer."
        )
    return None


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


def answer_end_ids(
    tokenizer: Tokenizer, template: ChatTemplate | None, more: Sequence[int] = ()
) -> tuple[int, ...]:
    """Return the ids of the tokens that end an answer, each id once.

    The ids are the end-of-turn token of ``template`` (if it is not None), EOS, and ``more``.
    """
    own = template.stop_ids if template else (tokenizer.eos_id,)
    return tuple(dict.fromkeys((*own, *more)))


def find_template(vocabulary: str) -> str | None:
    """Return the Jinja source of the chat template for a vocabulary file; None if not found.

    The template is read from the folder of the vocabulary and, if the folder is named ``original``,
    from its parent.
    """
    folder = epath.Path(vocabulary).parent
    for parent in (folder, folder.parent) if folder.name == "original" else (folder,):
        file = parent / TEMPLATE_FILE
        if file.is_file():
            content = read_bounded(str(file), REMEDY)
            try:
                return content.decode("utf-8-sig")
            except UnicodeDecodeError:
                raise UserError(f"{file}: not UTF-8; {REMEDY}.") from None
        file = parent / CONFIG_FILE
        if file.exists() and (found := read_json_object(str(file), REMEDY).get("chat_template")):
            return found if isinstance(found, str) else _default(found, file)
    return None


def _default(templates: Any, file: epath.Path) -> str:
    """Return the template named ``default``; raise UserError if there is no such template."""
    if isinstance(templates, dict):
        templates = [{"name": name, "template": text} for name, text in templates.items()]
    for template in templates if isinstance(templates, list) else ():
        if isinstance(template, dict) and template.get("name") == "default":
            text = template.get("template")
            if isinstance(text, str):
                return text
    raise UserError(f"{file}: no chat template is named 'default'; rename one of them.")
