"""Conversion of chat records to tokenized examples.

An example is a conversation, a preference pair or a rated answer. Packing never splits an example
across rows.
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
from llama_cpt.data.chat.formats import drop_fields, read_record
from llama_cpt.data.chat.template import ChatTemplate
from llama_cpt.data.sources.documents import BadDocument
from llama_cpt.data.sources.json_records import Record
from llama_cpt.runtime.errors import UserError

Kind = Literal["conversations", "preferences", "unpaired"]


@dataclass(frozen=True)
class ChatSpec:
    """Settings for the conversion of a corpus of chat records to rows."""

    kind: Kind
    template: str
    """Fingerprint of the chat template."""
    loss_on: str
    too_long: str
    mask_format_tokens: bool
    drop_fields: str = ""
    """Names of the fields of records and turns that are ignored, sorted and joined by commas."""


class Segment(NamedTuple):
    """The tokens of a segment, which attend only to each other, and their loss mask.

    A segment of n tokens takes n - 1 positions of a row, because the last token is only a target.
    """

    tokens: UInt32[np.ndarray, " tokens"]
    loss_mask: Bool[np.ndarray, " tokens"]
    """True for tokens that count in the loss when they are targets."""
    prompt_tokens: int
    """Number of tokens before the answer; 0 for a conversation."""


class ChatExample(NamedTuple):
    """A tokenized conversation, preference pair or rated answer: one or two segments."""

    segments: tuple[Segment, ...]
    good: bool
    """True for a rated answer with a good rating; False for all other examples."""


@dataclass
class EncodedChats:
    """Tokenized examples of consecutive records, in the order of the records, and counts."""

    examples: list[ChatExample] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Number of tokens of each record before truncation."""
    source_bytes: list[int] = field(default_factory=list)
    """UTF-8 bytes of each record's text."""
    characters: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    """Number of records by format."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of bad records by reason."""
    dropped_fields: Counter[str] = field(default_factory=Counter)
    """Number of records in which a field of ``ChatSpec.drop_fields`` had content, by field."""
    failure: str = ""
    """Message about the bad record at which encoding stopped; empty if it did not stop early."""


def make_chat_spec(
    chat: ChatConfig, template: ChatTemplate, objective: NextTokenConfig | PreferenceConfig
) -> ChatSpec:
    """Return the settings for the conversion of chat data to rows for ``objective``."""
    masked = False
    match objective:
        case NextTokenConfig():
            kind: Kind = "conversations"
        case PreferenceConfig():
            kind = "unpaired" if objective.loss == "kto" else "preferences"
            masked = objective.mask_format_tokens
    dropped = ",".join(sorted(set(chat.drop_fields)))
    return ChatSpec(kind, template.fingerprint, chat.loss_on, chat.too_long, masked, dropped)


def encode_chats(
    template: ChatTemplate,
    records: Iterable[Record | BadDocument],
    spec: ChatSpec,
    *,
    skip_bad: bool,
) -> EncodedChats:
    """Return ``records`` as tokenized examples.

    Bad records are counted by reason. If ``skip_bad`` is False, encoding stops at the first bad
    record, and ``failure`` describes that record.
    """
    done = EncodedChats()
    for record in records:
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
    """Add the examples of ``record`` to ``done``; return a BadDocument if the record is bad."""
    try:
        values, dropped = drop_fields(
            record.values, tuple(filter(None, spec.drop_fields.split(",")))
        )
        name, chat = read_record(values)
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
    done.dropped_fields.update(dropped)
    return None


def _parts(chat: Chat, kind: Kind) -> Iterator[Chat]:
    """Yield ``chat``, or the two rated answers of a preference pair if ``kind`` is ``unpaired``.

    Raises InvalidRecordError if ``chat`` cannot be used as ``kind``.
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
            raise InvalidRecordError(f"not {required[kind]}", "which the objective requires")


def _example(template: ChatTemplate, chat: Chat, spec: ChatSpec) -> ChatExample:
    match chat:
        case Conversation(messages):
            return ChatExample(
                (_encode_conversation(template, messages, spec.loss_on),), good=False
            )
        case PreferencePair(prompt, chosen, rejected):
            pair = [_encode_answer(template, prompt, text, spec) for text in (chosen, rejected)]
            chosen_prompt, rejected_prompt = (one.tokens[: one.prompt_tokens] for one in pair)
            if not np.array_equal(chosen_prompt, rejected_prompt):
                raise InvalidRecordError(
                    "the chat template gives the two answers different prompts"
                )
            return ChatExample(tuple(pair), good=False)
        case RatedAnswer(prompt, answer, good):
            return ChatExample((_encode_answer(template, prompt, answer, spec),), good)


def _encode_conversation(
    template: ChatTemplate, messages: Sequence[Message], loss_on: str
) -> Segment:
    """Return the segment of a conversation.

    ``loss_on`` and the flags of the turns determine the tokens that count in the loss. A flag can
    exclude an answer; it cannot add a turn that ``loss_on`` excludes.
    """
    rendering = template.render(messages)
    spans = rendering.assistant_spans
    answers = [message for message in messages if message.role == "assistant"]
    _check_flags_of_prompts(messages, loss_on)
    if len(spans) != len(answers) and any(answer.learned is not None for answer in answers):
        raise InvalidRecordError("the chat template does not mark each answer, so flags are lost")
    loss_mask = np.full(len(rendering.tokens), loss_on == "all")
    for start, end in spans[-1:] if loss_on == "last" else spans:
        loss_mask[start:end] = True
    for (start, end), answer in zip(spans, answers, strict=False):
        if answer.learned is False:
            loss_mask[start:end] = False
    if loss_on == "last" and answers[-1].learned is False:
        raise InvalidRecordError("no assistant turn to learn", "a flag excludes the last answer")
    return Segment(rendering.tokens, loss_mask, 0)


def _check_flags_of_prompts(messages: Sequence[Message], loss_on: str) -> None:
    """Raise InvalidRecordError if a flag of a system or user turn contradicts ``loss_on``."""
    in_loss = loss_on == "all"
    for message in messages:
        if message.role != "assistant" and message.learned is (not in_loss):
            raise InvalidRecordError(
                "a flag of a turn that is not the assistant's",
                f"it contradicts data.chat.loss_on={loss_on}; drop the flag by "
                "data.chat.drop_fields, or correct the record",
            )


def _encode_answer(
    template: ChatTemplate, prompt: Sequence[Message], answer: str, spec: ChatSpec
) -> Segment:
    """Return the segment of a prompt and its answer.

    Only tokens of the answer count in the loss. With ``spec.mask_format_tokens``, special tokens of
    the answer do not count either.
    """
    rendering = template.render((*prompt, Message("assistant", answer)))
    start, end = rendering.assistant_spans[-1]
    loss_mask = np.arange(end) >= start
    if spec.mask_format_tokens:
        loss_mask &= ~rendering.special[:end]
    return Segment(rendering.tokens[:end], loss_mask, start)
