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
from llama_cpt.data.chat.formats import read_record
from llama_cpt.data.sources.documents import BadDocument
from llama_cpt.data.sources.files import find_sources
from llama_cpt.data.sources.json_records import Record, parse_records, read_record_blocks
from llama_cpt.runtime.errors import USER_ERROR, UserError

S, U, A = Message("system", "s"), Message("user", "u"), Message("assistant", "a")
U2, A2 = Message("user", "v"), Message("assistant", "b")


def openai(*messages):
    return [{"role": m.role, "content": m.content} for m in messages]


def sharegpt(*messages):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[m.role], "value": m.content} for m in messages]


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
    ("messages is not a list of turns", {"messages": "u"}),
    ("messages is not a list of turns", {"messages": []}),
    ("messages is not a list of turns", {"messages": ["u", "a"]}),
    ("a turn without 'content'", {"messages": [{"role": "user"}]}),
    ("content is not text", {"messages": [{"role": "user", "content": None}]}),
    ("content is not text", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    ("history is not pairs of texts", {"instruction": "u", "output": "a", "history": [["u"]]}),
    ("not UTF-8", {"prompt": "u", "completion": "\ud800"}),
    ("not text", {"prompt": "u", "completion": "a\ufdd0"}),
]


@pytest.mark.parametrize(("name", "record", "expected"), FORMATS)
def test_each_format_is_read(name, record, expected):
    assert read_record(record) == (name, expected)


@pytest.mark.parametrize(("reason", "record"), BAD)
def test_bad_records_give_their_reason(reason, record):
    with pytest.raises(InvalidRecordError) as caught:
        read_record(record)
    assert caught.value.reason == reason


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
