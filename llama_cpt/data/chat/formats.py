"""Chat data formats, which are recognized by the fields of a record.

| format | fields |
| --- | --- |
| messages | ``messages`` or ``conversations``: turns with ``role, content`` (OpenAI) |
| sharegpt | ``messages`` or ``conversations``: turns with ``from, value`` |
| alpaca | ``instruction, output`` and optionally ``input, history`` |
| prompt-completion | ``prompt, completion``, each a string or turns |
| question-answer | ``question, answer`` |

A record with ``chosen`` and ``rejected`` instead of an answer is a preference pair. Each of the two
fields is a string, a turn or a list of turns. A record with an answer and a boolean ``label`` is a
rated answer. In every format, an optional field ``system`` or ``system_prompt`` is the first turn.
A field that is null counts as absent, because tables store an absent field as null.

A turn can state whether it counts in the loss: ``weight`` (0 or 1), ``train`` or ``loss`` (true or
false). Content that cannot be rendered, such as ``tools``, is an error unless
``data.chat.drop_fields`` names the field.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from llama_cpt.data.chat.conversations import (
    Chat,
    Conversation,
    InvalidRecordError,
    Message,
    PreferencePair,
    RatedAnswer,
    Role,
)

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
TURNS = ("messages", "conversations")
# Field of the prompt -> field of the answer.
ANSWERS = {"instruction": "output", "prompt": "completion", "question": "answer"}
# Fields with the system message.
SYSTEM = ("system", "system_prompt")
FLAGS = ("weight", "train", "loss")
# Types of content parts that are text, in two versions of OpenAI's format.
TEXT_TYPES = (None, "text", "input_text", "output_text")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
# Fields with content that a chat template does not receive, so that it would be lost.
LOST_FIELDS = (
    "tools",
    "tool_calls",
    "functions",
    "function_call",
    "reasoning_content",
    "images",
    "videos",
    "audios",
)
# In a record, these fields can be notes about the record. In a turn, they are a part of the answer.
LOST_TURN_FIELDS = (*LOST_FIELDS, *REASONING_FIELDS[1:])

# Fields whose prompt and answer are texts or turns, without fields such as ``input``.
_PLAIN = ("prompt", "question")
_TURN_FIELDS = (*TURNS, *_PLAIN, "completion", "answer", "chosen", "rejected")

Turns = tuple[Message, ...]


class LostFieldError(InvalidRecordError):
    """The error for a field with content that a chat template does not receive."""


def read_record(record: dict[str, Any]) -> tuple[str, Chat]:
    """Return the format name and the chat in ``record``.

    Raises InvalidRecordError if the format is unknown or the chat is invalid.
    """
    record = _present(record)
    _check_nothing_is_lost(record, LOST_FIELDS)
    if "chosen" in record and "rejected" in record:
        return _preference(record)
    name, messages = _dialogue(record)
    if "label" not in record:
        return name, Conversation(messages)
    if not isinstance(record["label"], bool):
        raise InvalidRecordError("label is not true or false", f"it is {_shown(record['label'])}")
    if not messages or messages[-1].role != "assistant":
        raise InvalidRecordError("the judged turn is not the assistant's")
    answer = _learned_answer(messages[-1])
    return f"{name} + label", RatedAnswer(_unflagged(messages[:-1]), answer, record["label"])


def read_prompt(record: dict[str, Any]) -> Turns:
    """Return the turns of ``record`` before its last answer, or all turns if it has no answer.

    Flags and reasoning concern only answers, so they are ignored. Raises InvalidRecordError if the
    turns are not a valid prompt.
    """
    try:
        return _prompt(_present(drop_fields(record, (*FLAGS, *REASONING_FIELDS))[0]))
    except LostFieldError as error:
        # ``data.chat.drop_fields`` has no effect on prompts.
        raise InvalidRecordError(error.reason, "remove it from the record") from None


def _prompt(record: dict[str, Any]) -> Turns:
    """Return the prompt in ``record``, which has no null fields and no flags."""
    _check_nothing_is_lost(record, LOST_FIELDS)
    if "chosen" in record and "rejected" in record:
        return _preference(record)[1].prompt
    missing = {answer: "" for prompt, answer in ANSWERS.items() if prompt in record}
    turns = _dialogue(missing | record)[1]
    prompt = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    # The constructor validates the prompt. The text of the answer does not matter.
    return RatedAnswer(_unflagged(prompt), "answer", True).prompt


def drop_fields(record: dict[str, Any], names: Collection[str]) -> tuple[dict[str, Any], set[str]]:
    """Return ``record`` without the fields ``names``, and the dropped names that had content.

    The fields of turns are dropped as well.
    """
    found: set[str] = set()

    def drop(values: Any, *, is_turn: bool) -> Any:
        if isinstance(values, list) and is_turn:
            return [drop(v, is_turn=True) if isinstance(v, dict) else v for v in values]
        if not isinstance(values, dict):
            return values
        found.update(name for name in names if _has_content(values.get(name)))
        kept = {name: value for name, value in values.items() if name not in names}
        return kept if is_turn else {n: drop(v, is_turn=n in _TURN_FIELDS) for n, v in kept.items()}

    return drop(record, is_turn=False), found


def _present(values: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that are not null."""
    return {name: value for name, value in values.items() if value is not None}


def _has_content(value: Any) -> bool:
    """Return whether ``value`` is neither null nor empty; 0 and false are content."""
    return value is not None and value not in ("", [], {})


def _check_nothing_is_lost(values: dict[str, Any], fields: Collection[str]) -> None:
    """Raise InvalidRecordError if a record or turn has content in one of ``fields``."""
    for name in fields:
        if _has_content(values.get(name)):
            raise LostFieldError(
                f"{name!r} would be lost", f"remove it, or add {name} to data.chat.drop_fields"
            )


def _unflagged(turns: Turns) -> Turns:
    """Return the turns of a prompt without their flags, because flags concern only the loss."""
    return tuple(replace(turn, learned=None) for turn in turns)


def _learned_answer(turn: Message) -> str:
    """Return the text of a preferred, rejected or rated answer, which no flag may exclude."""
    if turn.learned is False:
        raise InvalidRecordError("no assistant turn to learn", "a flag excludes the answer")
    return turn.content


def _dialogue(record: dict[str, Any]) -> tuple[str, Turns]:
    """Return the format name and the turns of a record that contains a single conversation."""
    field = next((field for field in TURNS if field in record), None)
    if field:
        name, turns = _turns(record[field], field)
    elif "instruction" in record and "output" in record:
        name = "alpaca"
        turns = (*_alpaca_prompt(record), Message("assistant", _text(record, "output")))
    elif field := next((p for p in _PLAIN if p in record and ANSWERS[p] in record), None):
        name = f"{field}-{ANSWERS[field]}"
        turns = _turns_or_text(record, field, "user") + _turns_or_text(
            record, ANSWERS[field], "assistant"
        )
    else:
        fields = ", ".join(record) or "none"
        raise InvalidRecordError("of no known chat format", f"its fields: {fields}")
    return name, _system(record) + turns


def _preference(record: dict[str, Any]) -> tuple[str, PreferencePair]:
    """Return the format name and the preference pair in ``record``."""
    name, prompt = _preference_prompt(record)
    chosen, rejected = (
        _turns_or_text(record, field, "assistant") for field in ("chosen", "rejected")
    )
    if not prompt or (len(chosen) > 1 and len(rejected) > 1):
        # Both fields are whole conversations, which must be equal except for the last turn.
        prompt = _system(record) + chosen[:-1]
        if len(chosen) < 2 or _unflagged(chosen[:-1]) != _unflagged(rejected[:-1]):
            raise InvalidRecordError("chosen and rejected are not answers to one prompt")
        chosen, rejected = chosen[-1:], rejected[-1:]
    if [turn.role for turn in chosen + rejected] != ["assistant"] * 2:
        raise InvalidRecordError("chosen and rejected are not one assistant turn each")
    first, second = (_learned_answer(turn) for turn in chosen + rejected)
    return name, PreferencePair(_unflagged(prompt), first, second)


def _preference_prompt(record: dict[str, Any]) -> tuple[str, Turns]:
    """Return the format name and the prompt of a preference pair.

    The prompt is empty if ``chosen`` and ``rejected`` are whole conversations.
    """
    suffix = "chosen + rejected"
    if "prompt" in record:
        return f"prompt + {suffix}", _system(record) + _turns_or_text(record, "prompt", "user")
    if field := next((field for field in TURNS if field in record), None):
        name, turns = _turns(record[field], field)
        return f"{name} + {suffix}", _system(record) + turns
    if "question" in record:
        question = _turns_or_text(record, "question", "user")
        return f"question + {suffix}", _system(record) + question
    if "instruction" in record:
        return f"alpaca + {suffix}", _system(record) + _alpaca_prompt(record)
    return suffix, ()


def _alpaca_prompt(record: dict[str, Any]) -> Turns:
    """Return the turns before the answer of an Alpaca record.

    ``history`` is a list of [question, answer] pairs. The last question is ``instruction`` and, on
    a new line, ``input``.
    """
    turns: list[Message] = []
    for pair in record.get("history") or ():
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise InvalidRecordError("history is not pairs of texts")
        turns += Message("user", pair[0]), Message("assistant", pair[1])
    question = _text(record, "instruction")
    if record.get("input"):
        question = "\n".join(filter(None, (question, _text(record, "input"))))
    return (*turns, Message("user", question))


def _system(record: dict[str, Any]) -> Turns:
    """Return the system message, which can be in either field of ``SYSTEM``, or no turns."""
    texts = {_text(record, field) for field in SYSTEM if record.get(field)}
    if len(texts) > 1:
        raise InvalidRecordError(f"{' and '.join(SYSTEM)} differ", "keep one of the two fields")
    return tuple(Message("system", text) for text in texts)


def _turns_or_text(record: dict[str, Any], field: str, role: Role) -> Turns:
    """Return the turns in ``field``: a string (one turn by ``role``), a turn or a list of turns."""
    value = record[field]
    if isinstance(value, str):
        return (Message(role, value),)
    return _turns([value] if isinstance(value, dict) else value, field)[1]


def _turns(values: Any, field: str) -> tuple[str, Turns]:
    if not isinstance(values, list) or not values:
        raise InvalidRecordError(f"{field} is not a list of turns")
    if not all(isinstance(value, dict) for value in values):
        raise InvalidRecordError(f"{field} is not a list of turns", "a turn is an object")
    sharegpt = "from" in values[0]
    keys = ("from", "value") if sharegpt else ("role", "content")
    turns = tuple(_turn(value, *keys) for value in values)
    return "sharegpt" if sharegpt else "messages", turns


def _turn(value: dict[str, Any], role: str, content: str) -> Message:
    if missing := [key for key in (role, content) if key not in value]:
        fields = ", ".join(value) or "none"
        raise InvalidRecordError(f"a turn without {missing[0]!r}", f"its fields: {fields}")
    if not isinstance(value[role], str) or value[role] not in ROLES:
        raise InvalidRecordError(
            "an unknown role", f"{_shown(value[role])} is not one of {', '.join(ROLES)}"
        )
    _check_nothing_is_lost(value, LOST_TURN_FIELDS)
    learned = _flag(value)
    if learned and ROLES[value[role]] != "assistant" and value.get("weight") is not None:
        learned = None  # A weight of 1 is the default: it does not add a turn to the loss.
    return Message(ROLES[value[role]], _text(value, content), learned)


def _flag(turn: dict[str, Any]) -> bool | None:
    """Return True if flags include the turn in the loss, False if they exclude it, else None."""
    flags = {name: turn[name] for name in FLAGS if turn.get(name) is not None}
    for name, value in flags.items():
        valid = value in (0, 1) if name == "weight" else isinstance(value, bool)
        if not valid or not isinstance(value, bool | int | float):
            known = "0 or 1" if name == "weight" else "true or false"
            raise InvalidRecordError(f"{name!r} of a turn is not {known}", f"it is {_shown(value)}")
    if len({bool(value) for value in flags.values()}) > 1:
        raise InvalidRecordError("flags of a turn contradict each other", ", ".join(flags))
    return bool(next(iter(flags.values()))) if flags else None


def _shown(value: Any) -> str:
    """Return ``value`` as Python shows it, or its type if it is a list or an object."""
    return type(value).__name__ if isinstance(value, list | dict) else repr(value)


def _is_text_part(part: Any) -> bool:
    """Return whether the content part ``part`` is text. Images and reasoning are not."""
    return isinstance(part, dict) and part.get("type") in TEXT_TYPES


def _text(values: dict[str, Any], field: str) -> str:
    """Return the text of ``field``: a string or, in OpenAI's format, a list of text parts."""
    value = values[field]
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    found = [part.get("text") if _is_text_part(part) else None for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if not texts or len(texts) < len(found):
        raise InvalidRecordError(f"{field} is not text", f"it is of type {type(value).__name__}")
    return "".join(texts)
