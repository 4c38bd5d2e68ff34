"""Chat data to what is packed as a whole: a conversation, a pair, a judged answer."""

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
    """How the records of a corpus become rows."""

    kind: Kind
    template: str
    """Its fingerprint."""
    loss_on: str
    too_long: str
    mask_format_tokens: bool


class Segment(NamedTuple):
    """What attends to itself alone: n tokens, which give n - 1 places of a row."""

    tokens: UInt32[np.ndarray, " tokens"]
    loss_mask: Bool[np.ndarray, " tokens"]
    """Which tokens are learnt as targets."""
    prompt_tokens: int
    """How many tokens come before the answer; 0 for a conversation."""


class ChatExample(NamedTuple):
    """What stays in one row: one segment, or two."""

    segments: tuple[Segment, ...]
    good: bool
    """Of a judged answer."""


@dataclass
class EncodedChats:
    """Units in the order of their records, and what was counted."""

    examples: list[ChatExample] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Of each record, truncated or not."""
    source_bytes: list[int] = field(default_factory=list)
    characters: int = 0
    formats: Counter = field(default_factory=Counter)
    skipped: Counter = field(default_factory=Counter)
    failure: str = ""


def make_chat_spec(
    chat: ChatConfig, template: ChatTemplate, objective: NextTokenConfig | PreferenceConfig
) -> ChatSpec:
    """The recipe of a corpus that ``objective`` learns from."""
    masked = False
    match objective:
        case NextTokenConfig():
            kind: Kind = "conversations"
        case PreferenceConfig():
            kind = "unpaired" if objective.loss == "kto" else "preferences"
            masked = objective.mask_format_tokens
    return ChatSpec(kind, template.fingerprint, chat.loss_on, chat.too_long, masked)


def encode_chats(
    template: ChatTemplate, blocks: Iterable[Block], recipe: ChatSpec, *, skip_bad: bool
) -> EncodedChats:
    """Encode the records of ``blocks``; the first bad one ends it unless ``skip_bad``."""
    done = EncodedChats()
    for record in (record for block in blocks for record in parse_records(block)):
        bad = record if isinstance(record, BadDocument) else _add(done, template, record, recipe)
        if bad:
            done.skipped[bad.reason] += 1
            if not skip_bad:
                done.failure = str(bad)
                break
    return done


def _add(
    done: EncodedChats, template: ChatTemplate, record: Record, recipe: ChatSpec
) -> BadDocument | None:
    try:
        name, chat = read_record(record.values)
        units = [_unit(template, part, recipe) for part in _parts(chat, recipe.kind)]
    except InvalidRecordError as error:
        return BadDocument(record.path, record.number, error.reason, error.detail)
    except UserError as error:
        return BadDocument(record.path, record.number, "the chat template fails", str(error))
    texts = all_text(chat)
    done.examples += units
    done.tokens.append(sum(len(s.tokens) for unit in units for s in unit.segments))
    done.source_bytes.append(sum(len(text.encode()) for text in texts))
    done.characters += sum(map(len, texts))
    done.formats[name] += 1
    return None


def _parts(chat: Chat, kind: Kind) -> Iterator[Chat]:
    """What ``kind`` learns of ``chat``: for ``unpaired``, a pair is a good and a bad answer."""
    match kind, chat:
        case ("conversations", Conversation()) | ("preferences", PreferencePair()):
            yield chat
        case ("unpaired", RatedAnswer()):
            yield chat
        case ("unpaired", PreferencePair(prompt, chosen, rejected)):
            yield RatedAnswer(prompt, chosen, good=True)
            yield RatedAnswer(prompt, rejected, good=False)
        case _:
            wanted = {
                "conversations": "a conversation",
                "preferences": "a preference (chosen and rejected)",
                "unpaired": "a judged answer (label) or a preference",
            }
            raise InvalidRecordError(f"not {wanted[kind]}", "the objective learns from those")


def _unit(template: ChatTemplate, chat: Chat, recipe: ChatSpec) -> ChatExample:
    match chat:
        case Conversation(messages):
            return ChatExample((_conversation(template, messages, recipe.loss_on),), good=False)
        case PreferencePair(prompt, chosen, rejected):
            pair = [_answered(template, prompt, text, recipe) for text in (chosen, rejected)]
            if not np.array_equal(*(one.tokens[: one.prompt_tokens] for one in pair)):
                raise InvalidRecordError(
                    "the chat template gives the two answers different prompts"
                )
            return ChatExample(tuple(pair), good=False)
        case RatedAnswer(prompt, answer, good):
            return ChatExample((_answered(template, prompt, answer, recipe),), good)


def _conversation(template: ChatTemplate, messages: Sequence[Message], learn: str) -> Segment:
    rendering = template.render(messages)
    learnt = np.full(len(rendering.tokens), learn == "all")
    for start, end in (
        rendering.assistant_spans[-1:] if learn == "last" else rendering.assistant_spans
    ):
        learnt[start:end] = True
    return Segment(rendering.tokens, learnt, 0)


def _answered(
    template: ChatTemplate, prompt: Sequence[Message], answer: str, recipe: ChatSpec
) -> Segment:
    """The prompt and the answer, of which all is learnt, or all but its special tokens."""
    rendering = template.render((*prompt, Message("assistant", answer)))
    start, end = rendering.assistant_spans[-1]
    learnt = np.arange(end) >= start
    if recipe.mask_format_tokens:
        learnt &= ~rendering.special[:end]
    return Segment(rendering.tokens[:end], learnt, start)
