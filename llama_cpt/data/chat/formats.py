"""Chat data formats, which are recognized by the fields of a record.

| format | fields |
| --- | --- |
| messages | ``messages`` or ``conversations``: turns with ``role, content`` (OpenAI) |
| sharegpt | ``messages`` or ``conversations``: turns with ``from, value`` |
| alpaca | ``instruction, output`` and optionally ``input, history`` |
| prompt-completion | ``prompt, completion``, each a string or turns |

A record with ``chosen`` and ``rejected`` instead of an answer is a preference pair. Each of the two
fields is a string, a turn or a list of turns. A record with an answer and a boolean ``label`` is a
rated answer. In every format, an optional field ``system`` is the first turn.
"""

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
ANSWERS = {"instruction": "output", "prompt": "completion"}

Turns = tuple[Message, ...]


def read_record(record: dict[str, Any]) -> tuple[str, Chat]:
    """Return the format name and the chat in ``record``.

    Raises InvalidRecordError if the format is unknown or the chat is invalid.
    """
    if "chosen" in record and "rejected" in record:
        return _preference(record)
    name, messages = _dialogue(record)
    if "label" not in record:
        return name, Conversation(messages)
    if not isinstance(record["label"], bool):
        raise InvalidRecordError("label is not true or false", f"it is {record['label']!r}")
    if not messages or messages[-1].role != "assistant":
        raise InvalidRecordError("the judged turn is not the assistant's")
    rated = RatedAnswer(messages[:-1], messages[-1].content, record["label"])
    return f"{name} + label", rated


def read_prompt(record: dict[str, Any]) -> Turns:
    """Return the turns of ``record`` before its last answer, or all turns if it has no answer.

    Raises InvalidRecordError if the turns are not a valid prompt.
    """
    if "chosen" in record and "rejected" in record:
        return _preference(record)[1].prompt
    missing = {answer: "" for prompt, answer in ANSWERS.items() if prompt in record}
    turns = _dialogue(missing | record)[1]
    prompt = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    # The constructor validates the prompt. The text of the answer does not matter.
    return RatedAnswer(prompt, "answer", True).prompt


def _dialogue(record: dict[str, Any]) -> tuple[str, Turns]:
    """Return the format name and the turns of a record that contains a single conversation."""
    field = next((field for field in TURNS if field in record), None)
    if field:
        name, turns = _turns(record[field], field)
    elif "instruction" in record and "output" in record:
        name = "alpaca"
        turns = (*_alpaca_prompt(record), Message("assistant", _text(record, "output")))
    elif "prompt" in record and "completion" in record:
        name = "prompt-completion"
        turns = _turns_or_text(record, "prompt", "user") + _turns_or_text(
            record, "completion", "assistant"
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
        if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
            raise InvalidRecordError("chosen and rejected are not answers to one prompt")
        chosen, rejected = chosen[-1:], rejected[-1:]
    if [turn.role for turn in chosen + rejected] != ["assistant"] * 2:
        raise InvalidRecordError("chosen and rejected are not one assistant turn each")
    first, second = (turn.content for turn in chosen + rejected)
    return name, PreferencePair(prompt, first, second)


def _preference_prompt(record: dict[str, Any]) -> tuple[str, Turns]:
    """Return the format name and the prompt of a preference pair.

    The prompt is empty if ``chosen`` and ``rejected`` are whole conversations.
    """
    suffix = "chosen + rejected"
    if "prompt" in record:
        return f"prompt + {suffix}", _system(record) + _turns_or_text(record, "prompt", "user")
    if "conversations" in record:
        name, turns = _turns(record["conversations"], "conversations")
        return f"{name} + {suffix}", _system(record) + turns
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
    return (Message("system", _text(record, "system")),) if record.get("system") else ()


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
            "an unknown role", f"{value[role]!r} is not one of {', '.join(ROLES)}"
        )
    return Message(ROLES[value[role]], _text(value, content))


def _text(values: dict[str, Any], field: str) -> str:
    """Return the text of ``field``: a string or, in OpenAI's format, a list of text parts."""
    value = values[field]
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    found = [part.get("text") if isinstance(part, dict) else None for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if not texts or len(texts) < len(found):
        raise InvalidRecordError(f"{field} is not text", f"it is of type {type(value).__name__}")
    return "".join(texts)
