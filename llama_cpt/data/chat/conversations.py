"""Chat data independent of its file format: conversations, preference pairs, rated answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
# Unicode noncharacters, which no text contains: chat templates use them to mark spans.
MARKS = "\ufdd0\ufdd1\ufdd2\ufdd3"


class InvalidRecordError(ValueError):
    """A record that cannot be used for training.

    ``reason`` is one of a few fixed strings, which are keys of ``skipped`` in manifests and
    therefore never change; ``detail`` is specific to the record.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """A conversation: an optional system message, then alternating user and assistant turns."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        """Raise InvalidRecordError if turns are malformed or there is no assistant turn."""
        _check_turns(self.messages)
        if all(message.role != "assistant" for message in self.messages):
            raise InvalidRecordError("no assistant turn")


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, which ends with a user turn."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        """Raise InvalidRecordError if turns are malformed or the answers are equal."""
        _check_prompt(self.prompt)
        for answer in (self.chosen, self.rejected):
            _check_turns((*self.prompt, Message("assistant", answer)))
        if self.chosen.strip() == self.rejected.strip():
            raise InvalidRecordError("an answer equal to its rival")


@dataclass(frozen=True)
class RatedAnswer:
    """An answer to a prompt, which ends with a user turn, with a binary rating."""

    prompt: tuple[Message, ...]
    answer: str
    good: bool

    def __post_init__(self) -> None:
        """Raise InvalidRecordError if turns are malformed."""
        _check_prompt(self.prompt)
        _check_turns((*self.prompt, Message("assistant", self.answer)))


Chat = Conversation | PreferencePair | RatedAnswer


def all_text(chat: Chat) -> list[str]:
    """Return all text of ``chat``, each turn once."""
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
