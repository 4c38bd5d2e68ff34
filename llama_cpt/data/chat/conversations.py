"""Validated conversations, preference pairs and rated answers, independent of file formats."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
# Unicode noncharacters that mark spans while a chat is rendered; a chat must not contain them.
MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3"


class InvalidRecordError(ValueError):
    """The error for a chat record that cannot be used for training.

    ``reason`` is the kind of error. Manifests count skipped records by reason, so the wording of a
    reason must not change. ``detail`` describes the error in this record.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Message:
    """A turn of a conversation: the role of the speaker and the text."""

    role: Role
    content: str
    learned: bool | None = None
    """True or False if the record states whether the turn counts in the loss; otherwise None."""


@dataclass(frozen=True)
class Conversation:
    """A conversation: an optional system message, then alternating user and assistant turns."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        """Raise InvalidRecordError if a turn is invalid or there is no assistant turn."""
        _check_turns(self.messages)
        answers = [message for message in self.messages if message.role == "assistant"]
        if not answers:
            raise InvalidRecordError("no assistant turn")
        if all(answer.learned is False for answer in answers):
            raise InvalidRecordError("no assistant turn to learn", "flags exclude all of them")


@dataclass(frozen=True)
class PreferencePair:
    """A prompt that ends with a user turn, with a chosen and a rejected answer."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        """Raise InvalidRecordError if a turn is invalid or the answers are equal."""
        _check_prompt(self.prompt)
        for answer in (self.chosen, self.rejected):
            _check_turns((*self.prompt, Message("assistant", answer)))
        if self.chosen.strip() == self.rejected.strip():
            raise InvalidRecordError("an answer equal to its rival")


@dataclass(frozen=True)
class RatedAnswer:
    """A prompt that ends with a user turn, an answer, and the answer's rating: good or bad."""

    prompt: tuple[Message, ...]
    answer: str
    good: bool

    def __post_init__(self) -> None:
        """Raise InvalidRecordError if a turn is invalid."""
        _check_prompt(self.prompt)
        _check_turns((*self.prompt, Message("assistant", self.answer)))


Chat = Conversation | PreferencePair | RatedAnswer


def all_text(chat: Chat) -> list[str]:
    """Return the texts of the turns of ``chat``; the prompt of a pair is included only once."""
    match chat:
        case Conversation(messages):
            return [message.content for message in messages]
        case PreferencePair(prompt, chosen, rejected):
            return [message.content for message in prompt] + [chosen, rejected]
        case RatedAnswer(prompt, answer):
            return [message.content for message in prompt] + [answer]


def _check_prompt(prompt: Sequence[Message]) -> None:
    if not prompt or prompt[-1].role != "user":
        raise InvalidRecordError("the prompt does not end with a user turn")


def _check_turns(messages: Sequence[Message]) -> None:
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    expected = "user"
    for number, message in enumerate(turns):
        if message.role == "system":
            raise InvalidRecordError("a system turn that is not the first")
        if message.role != expected:
            if not number:
                raise InvalidRecordError("the assistant speaks first")
            raise InvalidRecordError(f"two {message.role} turns in a row")
        if not message.content.strip():
            what = "answer" if message.role == "assistant" else "turn"
            raise InvalidRecordError(f"an empty {what}")
        expected = "assistant" if message.role == "user" else "user"
    for message in messages:
        _check_text(message.content)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRecordError("not UTF-8", "a lone surrogate") from None
    if found := [mark for mark in MARKS if mark in text]:
        raise InvalidRecordError("not text", f"U+{ord(found[0]):04X} is not a character")
