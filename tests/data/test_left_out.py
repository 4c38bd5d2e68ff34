"""Flags of turns, dropped fields, and records that are left out, from files to the manifest."""

from dataclasses import replace
import json

import numpy as np
import pytest

from llama_cpt.config.chat import ChatConfig
from llama_cpt.config.schema import CorpusConfig, DataConfig, PreferenceConfig
from llama_cpt.data.prepare.corpora import open_rows, prepare
from llama_cpt.data.rows import read_manifest, write_manifest
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.prepare import corpus_report
from llama_cpt.runtime.errors import UserError


@pytest.fixture
def chats(tmp_path, vocabulary):
    """Return a function that prepares chat records and returns the prepared corpora."""

    def make(records, chat=None, objective=None, length=160):
        (tmp_path / "zh.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
        config = DataConfig(
            tokenizer=str(vocabulary),
            prepared=str(tmp_path / "prepared"),
            sequence_length=length,
            almr=1.0,
            additional=(CorpusConfig("zh", str(tmp_path / "zh.jsonl")),),
            bad_documents="skip",
            chat=chat or ChatConfig(),
        )
        return prepare(config, 1, objective=objective)

    return make


def turns(*answers, **flags):
    """Return a conversation; the flags belong to the first answer."""
    messages = []
    for answer in answers:
        messages += [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    messages[1] |= flags
    return {"messages": messages}


def learned_text(prepared):
    """Return the text of the targets with a loss."""
    (rows,) = open_rows(prepared)
    row = rows.read(np.array([0]))
    targets, mask = (np.asarray(getattr(row, name)) for name in ("targets", "loss_mask"))
    tokenizer = load_tokenizer(prepared.config.tokenizer)
    return tokenizer.decode(targets[np.nonzero(mask)].tolist())


@pytest.mark.parametrize(
    ("flags", "loss_on", "expected"),
    [
        ({}, "assistant", "bad<|eot_id|>good<|eot_id|>"),
        ({"weight": 0}, "assistant", "good<|eot_id|>"),
        ({"train": False}, "assistant", "good<|eot_id|>"),
        ({"loss": False, "weight": None}, "last", "good<|eot_id|>"),
        ({"weight": 1}, "last", "good<|eot_id|>"),
    ],
)
def test_flagged_answers_have_no_loss(chats, flags, loss_on, expected):
    prepared = chats([turns("bad", "good", **flags)], ChatConfig(loss_on=loss_on))
    assert learned_text(prepared) == expected


def test_flags_with_a_loss_on_all_tokens(chats):
    prepared = chats([turns("bad", "good", loss=False)], ChatConfig(loss_on="all"))
    assert "bad" not in learned_text(prepared) and "good<|eot_id|>" in learned_text(prepared)


def test_unusable_flags_are_bad_records(chats):
    user = turns("a", "b")
    user["messages"][0]["train"] = True
    last = turns("a")
    last["messages"] = turns("x")["messages"] + turns("y", weight=0)["messages"]
    good = [turns("fine") for _ in range(3)]
    good[0]["messages"][0]["weight"] = 1  # The default, which has no effect on a user turn.
    prepared = chats([user, last, *good], ChatConfig(loss_on="last"))
    assert prepared.rows["zh"].skipped == {
        "a flag of a turn that is not the assistant's": 1,
        "no assistant turn to learn": 1,
    }


def test_dropped_fields_are_counted_and_part_of_the_spec(chats, vocabulary):
    records = [turns("a", tool_calls=[{"id": 1}]), turns("b") | {"tools": ["f"]}, turns("c")] * 2
    with pytest.raises(UserError, match="4 of 6 records .67%. are left out: 2 'tool.*max_left_out"):
        chats(records)
    chat = ChatConfig(drop_fields=("tools", "tool_calls", "tools"))
    with pytest.raises(UserError, match="chat.drop_fields was '', is 'tool_calls,tools'"):
        chats(records, chat)
    folder = chats(records, ChatConfig(max_left_out=0.7)).folder("zh")
    for old in (True, False):
        found = read_manifest(folder)
        assert found is not None and found.chat is not None
        if old:  # A manifest of an earlier version does not contain the field.
            chat_fields = {k: v for k, v in found.chat.items() if k != "drop_fields"}
            digest = load_tokenizer(str(vocabulary)).content_digest
            former = replace(found, chat=chat_fields, version=1, tokenizer=digest)
            write_manifest(folder, former)
            assert chats(records, ChatConfig(max_left_out=0.7)).rows["zh"].documents == 2


def test_report_of_dropped_fields(chats, vocabulary):
    records = [turns("a", tool_calls=[{"id": 1}]), turns("b") | {"tools": ["f"]}, turns("c")] * 2
    manifest = chats(records, ChatConfig(drop_fields=("tools", "tool_calls"))).rows["zh"]
    assert manifest.dropped_fields == {"tool_calls": 2, "tools": 2} and manifest.documents == 6
    report = corpus_report("", manifest, load_tokenizer(str(vocabulary)))
    assert "\n  2 records with the field tools, which was dropped" in report
    # Names of source files can contain any characters.
    manifest = replace(manifest, without_checksums=["a\x1b[2J\nb.parquet"])
    report = corpus_report("", manifest, load_tokenizer(str(vocabulary)))
    assert report.endswith("is not noticed: a[2J b.parquet")


@pytest.mark.parametrize("kind", ["conversations", "sigmoid", "kto"])
def test_share_of_left_out_records(chats, caplog, kind):
    objective = None if kind == "conversations" else PreferenceConfig(kind)

    def record(number, size):
        answers = {"chosen": "y" * size, "rejected": "n" * size}
        return {"prompt": f"{number}", **(answers if objective else {"completion": "y" * size})}

    records = [record(n, 400 if n < 6 else 4) for n in range(10)]
    with pytest.raises(
        UserError, match=r"of \d+ records .60%. are left out: .* longer than a row;"
    ):
        chats(records, objective=objective)
    caplog.clear()
    chats(records, ChatConfig(max_left_out=0.6), objective=objective)
    assert "(60%) are left out" in caplog.text and "increase data.sequence_length" in caplog.text


def test_truncated_tokens_are_a_warning(chats, caplog):
    records = [turns("y" * 900) for _ in range(3)]
    chats(records, ChatConfig(too_long="truncate_end"))
    assert "tokens (8" in caplog.text and "3 records were truncated" in caplog.text


def test_skipped_documents_are_a_warning(config, tmp_path, caplog):
    with (tmp_path / "en.jsonl").open("a") as file:
        file.write("what?\n" * 20)
    prepare(replace(config, bad_documents="skip"))
    assert "corpus 'en': 20 of 120 records (17%) are left out: 20 not JSON" in caplog.text
    assert "correct the source." in caplog.text


def test_held_out_documents_that_are_all_skipped_are_an_error(config, tmp_path):
    (tmp_path / "held.jsonl").write_text('{"text": ""}\n{"text": " "}\nno\n')
    with pytest.raises(
        UserError, match=r"held.jsonl\) contains no documents, 3 skipped \(2 empty t"
    ):
        prepare(replace(config, bad_documents="skip"))


@pytest.mark.parametrize("fields", [{"max_left_out": 1.5}, {"drop_fields": ("a,b",)}])
def test_invalid_chat_options_are_errors(fields):
    with pytest.raises(UserError, match="data.chat"):
        ChatConfig(**fields)
