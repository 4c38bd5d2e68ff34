"""Chat records to tokenized examples: conversations, preference pairs and rated answers.

An example is what packing keeps together in one row.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from jaxtyping import Bool, UInt32
import numpy as np

from llama_cpt.config.schema import ChatConfig, NextTokenConfig, PreferenceConfig
from llama_cpt.data.chat.conversations import (
    Chat,
    Conversation,
    InvalidRecordError,
    Message,
    PreferencePair,
    RatedAnswer,
    all_text,
)
from llama_cpt.data.chat.formats import read_record
from llama_cpt.data.chat.template import ChatTemplate
from llama_cpt.data.sources.documents import BadDocument, Block
from llama_cpt.data.sources.json_records import Record, parse_records
from llama_cpt.runtime.errors import UserError

Kind = Literal["conversations", "preferences", "unpaired"]


@dataclass(frozen=True)
class ChatSpec:
    """The settings that decide how the records of a corpus become rows."""

    kind: Kind
    template: str
    """Fingerprint of the chat template."""
    loss_on: str
    too_long: str
    mask_format_tokens: bool


class Segment(NamedTuple):
    """A sequence that attends only to itself: n tokens, which take n - 1 positions of a row."""

    tokens: UInt32[np.ndarray, " tokens"]
    loss_mask: Bool[np.ndarray, " tokens"]
    """Tokens that are learned as targets."""
    prompt_tokens: int
    """Number of tokens before the answer; 0 for a conversation."""


class ChatExample(NamedTuple):
    """One or two segments that stay together in one row."""

    segments: tuple[Segment, ...]
    good: bool
    """Rating of a rated answer; False for other kinds."""


@dataclass
class EncodedChats:
    """The examples of a span in the order of their records, with counts."""

    examples: list[ChatExample] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Tokens of each record before truncation."""
    source_bytes: list[int] = field(default_factory=list)
    characters: int = 0
    formats: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    failure: str = ""


def make_chat_spec(
    chat: ChatConfig, template: ChatTemplate, objective: NextTokenConfig | PreferenceConfig
) -> ChatSpec:
    """Return the spec of a corpus for ``objective``."""
    masked = False
    match objective:
        case NextTokenConfig():
            kind: Kind = "conversations"
        case PreferenceConfig():
            kind = "unpaired" if objective.loss == "kto" else "preferences"
            masked = objective.mask_format_tokens
    return ChatSpec(kind, template.fingerprint, chat.loss_on, chat.too_long, masked)


def encode_chats(
    template: ChatTemplate, blocks: Iterable[Block], spec: ChatSpec, *, skip_bad: bool
) -> EncodedChats:
    """Encode the records of ``blocks``.

    A bad record is counted; without ``skip_bad`` the first one stops the encoding and is reported
    in ``failure``.
    """
    done = EncodedChats()
    for record in (record for block in blocks for record in parse_records(block)):
        bad = record if isinstance(record, BadDocument) else _add(done, template, record, spec)
        if bad:
            done.skipped[bad.reason] += 1
            if not skip_bad:
                done.failure = str(bad)
                break
    return done


def _add(
    done: EncodedChats, template: ChatTemplate, record: Record, spec: ChatSpec
) -> BadDocument | None:
    """Add the examples of ``record`` to ``done``; return the reason if the record is bad."""
    try:
        name, chat = read_record(record.values)
        examples = [_example(template, part, spec) for part in _parts(chat, spec.kind)]
    except InvalidRecordError as error:
        return BadDocument(record.path, record.number, error.reason, error.detail)
    except UserError as error:
        return BadDocument(record.path, record.number, "the chat template fails", str(error))
    texts = all_text(chat)
    done.examples += examples
    done.tokens.append(sum(len(s.tokens) for example in examples for s in example.segments))
    done.source_bytes.append(sum(len(text.encode()) for text in texts))
    done.characters += sum(map(len, texts))
    done.formats[name] += 1
    return None


def _parts(chat: Chat, kind: Kind) -> Iterator[Chat]:
    """Yield the parts of ``chat`` that ``kind`` learns from.

    For ``unpaired``, a pair is a good answer and a bad one. Raises InvalidRecordError if the
    objective cannot learn from this kind of record.
    """
    match kind, chat:
        case ("conversations", Conversation()) | ("preferences", PreferencePair()):
            yield chat
        case ("unpaired", RatedAnswer()):
            yield chat
        case ("unpaired", PreferencePair(prompt, chosen, rejected)):
            yield RatedAnswer(prompt, chosen, good=True)
            yield RatedAnswer(prompt, rejected, good=False)
        case _:
            required = {
                "conversations": "a conversation",
                "preferences": "a preference (chosen and rejected)",
                "unpaired": "a judged answer (label) or a preference",
            }
            raise InvalidRecordError(f"not {required[kind]}", "the objective needs one")


def _example(template: ChatTemplate, chat: Chat, spec: ChatSpec) -> ChatExample:
    match chat:
        case Conversation(messages):
            return ChatExample(
                (_encode_conversation(template, messages, spec.loss_on),), good=False
            )
        case PreferencePair(prompt, chosen, rejected):
            pair = [_encode_answer(template, prompt, text, spec) for text in (chosen, rejected)]
            if not np.array_equal(*(one.tokens[: one.prompt_tokens] for one in pair)):
                raise InvalidRecordError(
                    "the chat template gives the two answers different prompts"
                )
            return ChatExample(tuple(pair), good=False)
        case RatedAnswer(prompt, answer, good):
            return ChatExample((_encode_answer(template, prompt, answer, spec),), good)


def _encode_conversation(
    template: ChatTemplate, messages: Sequence[Message], loss_on: str
) -> Segment:
    rendering = template.render(messages)
    loss_mask = np.full(len(rendering.tokens), loss_on == "all")
    for start, end in (
        rendering.assistant_spans[-1:] if loss_on == "last" else rendering.assistant_spans
    ):
        loss_mask[start:end] = True
    return Segment(rendering.tokens, loss_mask, 0)


def _encode_answer(
    template: ChatTemplate, prompt: Sequence[Message], answer: str, spec: ChatSpec
) -> Segment:
    """Return prompt and answer; the answer is learned, its special tokens only if not masked."""
    rendering = template.render((*prompt, Message("assistant", answer)))
    start, end = rendering.assistant_spans[-1]
    loss_mask = np.arange(end) >= start
    if spec.mask_format_tokens:
        loss_mask &= ~rendering.special[:end]
    return Segment(rendering.tokens[:end], loss_mask, start)
