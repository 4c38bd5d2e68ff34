"""Recognition of chat formats, and the positions and reasons of bad records."""

import gzip
import json

import pytest

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.data.chat.conversations import (
    Conversation,
    InvalidRecordError,
    Message,
    PreferencePair,
    RatedAnswer,
)
from llama_cpt.data.chat.formats import drop_fields, read_prompt, read_record
from llama_cpt.data.sources.documents import BadDocument
from llama_cpt.data.sources.files import find_sources
from llama_cpt.data.sources.json_records import Record, parse_records, read_record_blocks
from llama_cpt.runtime.errors import USER_ERROR, UserError

S, U, A = Message("system", "s"), Message("user", "u"), Message("assistant", "a")
U2, A2 = Message("user", "v"), Message("assistant", "b")
NOT_LEARNED = Message("assistant", "a", False)


def openai(*messages):
    return [{"role": m.role, "content": m.content} for m in messages]


def sharegpt(*messages):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[m.role], "value": m.content} for m in messages]


REASONING = {"reasoning_content": "think"}
FORMATS = [
    ("messages", {"messages": openai(S, U, A, U2, A2)}, Conversation((S, U, A, U2, A2))),
    ("messages", {"id": 1, "conversations": openai(U, A, U2)}, Conversation((U, A, U2))),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "u"}]}, *openai(A)]},
        Conversation((U, A)),
    ),
    ("sharegpt", {"conversations": sharegpt(U, A), "system": "s"}, Conversation((S, U, A))),
    ("sharegpt", {"conversations": sharegpt(S, U, A), "system": ""}, Conversation((S, U, A))),
    ("alpaca", {"instruction": "u", "input": "", "output": "a"}, Conversation((U, A))),
    (
        "alpaca",
        {"instruction": "u", "input": "i", "output": "a", "system": "s"},
        Conversation((S, Message("user", "u\ni"), A)),
    ),
    (
        "alpaca",
        {"instruction": "v", "output": "b", "history": [["u", "a"]]},
        Conversation((U, A, U2, A2)),
    ),
    ("prompt-completion", {"prompt": "u", "completion": "a"}, Conversation((U, A))),
    (
        "prompt-completion",
        {"prompt": openai(S, U), "completion": openai(A)},
        Conversation((S, U, A)),
    ),
    ("messages + label", {"messages": openai(U, A), "label": False}, RatedAnswer((U,), "a", False)),
    (
        "prompt-completion + label",
        {"prompt": "u", "completion": "a", "label": True},
        RatedAnswer((U,), "a", True),
    ),
    (
        "chosen + rejected",
        {"chosen": openai(S, U, A), "rejected": openai(S, U, A2)},
        PreferencePair((S, U), "a", "b"),
    ),
    (
        "sharegpt + chosen + rejected",
        {
            "conversations": sharegpt(U, A, U2),
            "chosen": sharegpt(A)[0],
            "rejected": sharegpt(A2)[0],
        },
        PreferencePair((U, A, U2), "a", "b"),
    ),
    (
        "prompt + chosen + rejected",
        {"prompt": "u", "chosen": "a", "rejected": "b"},
        PreferencePair((U,), "a", "b"),
    ),
    (
        "prompt + chosen + rejected",
        {"prompt": "u", "chosen": openai(U, A), "rejected": openai(U, A2), "messages": []},
        PreferencePair((U,), "a", "b"),
    ),
    (
        "alpaca + chosen + rejected",
        {"instruction": "u", "chosen": "a", "rejected": "b"},
        PreferencePair((U,), "a", "b"),
    ),
    (
        "messages + chosen + rejected",
        {"messages": openai(U), "chosen": openai(A)[0], "rejected": openai(A2)[0]},
        PreferencePair((U,), "a", "b"),
    ),
    (
        "messages + chosen + rejected",
        {"messages": openai(U, A), "chosen": openai(S, U, A), "rejected": openai(S, U, A2)},
        PreferencePair((S, U), "a", "b"),
    ),
    (
        "question + chosen + rejected",
        {"system": "s", "question": "u", "chosen": "a", "rejected": "b"},
        PreferencePair((S, U), "a", "b"),
    ),
    ("question-answer", {"question": "u", "answer": "a"}, Conversation((U, A))),
    (
        "question-answer",
        {"system_prompt": "s", "system": "", "question": "u", "answer": "a"},
        Conversation((S, U, A)),
    ),
    (
        "question + chosen + rejected",
        {"system_prompt": "s", "system": "s", "question": "u", "chosen": "a", "rejected": "b"},
        PreferencePair((S, U), "a", "b"),
    ),
    (
        "question-answer + label",
        {"question": "u", "answer": "a", "label": True},
        RatedAnswer((U,), "a", True),
    ),
    # Null fields count as absent.
    (
        "prompt-completion",
        {"prompt": "u", "completion": "a", "chosen": None, "rejected": None, "system": None},
        Conversation((U, A)),
    ),
    ("alpaca", {"messages": None, "instruction": "u", "output": "a"}, Conversation((U, A))),
    ("messages", {"messages": openai(U, A), "label": None, "tools": []}, Conversation((U, A))),
    (
        "chosen + rejected",
        {"prompt": None, "chosen": openai(U, A), "rejected": openai(U, A2)},
        PreferencePair((U,), "a", "b"),
    ),
    # Flags of turns are kept, but not in prompts, of which no turn counts in the loss.
    (
        "messages",
        {"messages": [*openai(U), {**openai(A)[0], "weight": 0}, *openai(U2, A2)]},
        Conversation((U, NOT_LEARNED, U2, A2)),
    ),
    (
        "sharegpt",
        {
            "conversations": [
                *sharegpt(U),
                {**sharegpt(A)[0], "train": False, "loss": None},
                *sharegpt(U2),
                {**sharegpt(A2)[0], "loss": True, "weight": 1.0},
            ]
        },
        Conversation((U, NOT_LEARNED, U2, Message("assistant", "b", True))),
    ),
    (
        "prompt + chosen + rejected",
        {
            "prompt": [*openai(U), {**openai(A)[0], "loss": False}, *openai(U2)],
            "chosen": {**openai(A)[0], "weight": 1},
            "rejected": openai(A2)[0],
        },
        PreferencePair((U, A, U2), "a", "b"),
    ),
]

BAD = [
    ("no assistant turn", {"messages": openai(U)}),
    ("two user turns in a row", {"messages": openai(U, U2, A)}),
    ("two assistant turns in a row", {"messages": openai(U, A, A2)}),
    ("the assistant speaks first", {"messages": openai(A, U)}),
    ("a system turn that is not the first", {"messages": openai(U, S, A)}),
    ("an empty answer", {"prompt": "u", "completion": " \n"}),
    ("an empty answer", {"prompt": "u", "chosen": "", "rejected": "b"}),
    ("an empty turn", {"instruction": "", "input": "", "output": "a"}),
    ("an unknown role", {"messages": [{"role": "tool", "content": "x"}]}),
    ("an unknown role", {"messages": [{"role": ["user"], "content": "x"}]}),
    ("an answer equal to its rival", {"prompt": "u", "chosen": "a", "rejected": " a\n"}),
    ("chosen and rejected are not answers to one prompt", {"chosen": "a", "rejected": "b"}),
    (
        "chosen and rejected are not answers to one prompt",
        {"chosen": openai(U, A), "rejected": openai(U2, A)},
    ),
    (
        "chosen and rejected are not one assistant turn each",
        {"prompt": "u", "chosen": openai(U2), "rejected": "b"},
    ),
    (
        "the prompt does not end with a user turn",
        {"prompt": openai(U, A), "chosen": "a", "rejected": "b"},
    ),
    ("label is not true or false", {"prompt": "u", "completion": "a", "label": 1}),
    ("the judged turn is not the assistant's", {"messages": openai(U, A, U2), "label": True}),
    ("of no known chat format", {"text": "u"}),
    (
        "system and system_prompt differ",
        {"system": "s", "system_prompt": "t", "question": "u", "answer": "a"},
    ),
    ("messages is not a list of turns", {"messages": "u"}),
    ("messages is not a list of turns", {"messages": []}),
    ("messages is not a list of turns", {"messages": ["u", "a"]}),
    ("a turn without 'content'", {"messages": [{"role": "user"}]}),
    ("content is not text", {"messages": [{"role": "user", "content": None}]}),
    ("content is not text", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    ("history is not pairs of texts", {"instruction": "u", "output": "a", "history": [["u"]]}),
    ("not UTF-8", {"prompt": "u", "completion": "\ud800"}),
    ("not text", {"prompt": "u", "completion": "a\ufdd0"}),
    ("no assistant turn to learn", {"messages": [*openai(U), {**openai(A)[0], "weight": 0}]}),
    (
        "no assistant turn to learn",
        {"prompt": "u", "chosen": {**openai(A)[0], "train": False}, "rejected": "b"},
    ),
    (
        "content is not text",
        {"messages": openai(U, Message("assistant", [{"type": "reasoning", "text": "t"}]))},  # pyright: ignore
    ),
    ("'weight' of a turn is not 0 or 1", {"messages": [{**openai(U)[0], "weight": 0.5}]}),
    ("'weight' of a turn is not 0 or 1", {"messages": [{**openai(U)[0], "weight": "0"}]}),
    ("'train' of a turn is not true or false", {"messages": [{**openai(U)[0], "train": 0}]}),
    (
        "flags of a turn contradict each other",
        {"messages": [*openai(U), {**openai(A)[0], "weight": 1, "loss": False}]},
    ),
    ("'tools' would be lost", {"tools": [{"name": "f"}], "messages": openai(U, A)}),
    (
        "'tool_calls' would be lost",
        {"messages": [*openai(U), {**openai(A)[0], "tool_calls": [{"id": 1}]}]},
    ),
    ("'reasoning_content' would be lost", {"prompt": "u", "completion": "a", **REASONING}),
    (
        "'reasoning_content' would be lost",
        {"messages": [*openai(U), {**openai(A)[0], **REASONING}]},
    ),
    ("'thinking' would be lost", {"messages": [*openai(U), {**openai(A)[0], "thinking": "t"}]}),
]


@pytest.mark.parametrize(("name", "record", "expected"), FORMATS)
def test_each_format_is_read(name, record, expected):
    assert read_record(record) == (name, expected)


@pytest.mark.parametrize(("reason", "record"), BAD)
def test_bad_records_give_their_reason(reason, record):
    with pytest.raises(InvalidRecordError) as caught:
        read_record(record)
    assert caught.value.reason == reason


def test_dropped_fields_are_ignored_and_found():
    turns = [*openai(U), {**openai(A)[0], "tool_calls": [{"id": 1}], "weight": 0, **REASONING}]
    record = {"tools": [], "functions": "f", "messages": turns, "id": 7}
    values, found = drop_fields(record, ["tools", "functions", "tool_calls", "weight", "images"])
    assert found == {"functions", "tool_calls", "weight"}
    assert values["messages"] == [*openai(U), {**openai(A)[0], **REASONING}] and values["id"] == 7


def test_prompts_do_not_depend_on_flags_and_reasoning_of_answers():
    turns = [*openai(U), {**openai(A)[0], **REASONING, "weight": 0.5}, *openai(U2, A2)]
    assert read_prompt({"messages": turns, "label": None}) == (U, A, U2)
    with pytest.raises(InvalidRecordError, match="'tools' would be lost") as caught:
        read_prompt({"messages": turns, "tools": ["f"]})
    assert caught.value.detail == "remove it from the record"


def read(path):
    sources = find_sources(CorpusConfig("chats", str(path)))
    blocks = list(read_record_blocks(sources, 40))
    return blocks, [record for block in blocks for record in parse_records(block)]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("layout", ["lines", "array", "pretty array"])
def test_arrays_and_lines_hold_the_same_records(tmp_path, layout, compressed):
    values = [{"prompt": f"u{n}\n[", "completion": "中" * n} for n in range(9)]
    text = {
        "lines": "\ufeff" + "\n\n".join(map(json.dumps, values)),
        "array": " " + json.dumps(values, ensure_ascii=False),
        "pretty array": "\ufeff" + json.dumps(values, indent=2),
    }[layout].encode()
    path = tmp_path / ("chats.json" + ".gz" * compressed)
    path.write_bytes(gzip.compress(text) if compressed else text)
    blocks, records = read(path)
    assert [record.values for record in records if isinstance(record, Record)] == values
    numbers = [2 * n + 1 for n in range(9)] if layout == "lines" else list(range(1, 10))
    assert [record.number for record in records] == numbers
    assert len(blocks) > 1 or compressed
    disk = sum(block.disk_bytes for block in blocks)
    assert disk == pytest.approx(path.stat().st_size, rel=0.01)


def test_broken_files_are_errors(tmp_path):
    path = tmp_path / "chats.json"
    path.write_text('{"a": 1}\n[1]\nno\n"\ud7ff"\n')
    _, records = read(path)
    reasons = [r.reason for r in records if isinstance(r, BadDocument)]
    assert reasons == ["not a JSON object", "not JSON", "not a JSON object"]
    path.write_text('[{"a": 1},\n')
    with pytest.raises(UserError, match="not a JSON array .* is the file complete"):
        read(path)
    for suffix in (".gz", ".bz2", ".xz", ".zst"):
        path = tmp_path / f"chats.jsonl{suffix}"
        path.write_bytes(b"what is this?")
        with pytest.raises(UserError, match="broken .*; is the file complete") as caught:
            read(path)
        assert caught.value.status == USER_ERROR
    (tmp_path / "chats.txt").write_text("x")
    with pytest.raises(UserError, match="unknown format; chat data must be"):
        read(tmp_path / "chats.txt")
