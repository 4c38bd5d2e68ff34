"""Rows and batches of prepared chats for each objective, and errors for outdated rows."""

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import replace
from fractions import Fraction
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from llama_cpt.config.schema import (
    ChatConfig,
    CorpusConfig,
    DataConfig,
    NextTokenConfig,
    PreferenceConfig,
)
from llama_cpt.data.batch import PreferenceBatch, TokenBatch, UnpairedBatch
from llama_cpt.data.chat.conversations import Message
from llama_cpt.data.chat.packing import record_fields
from llama_cpt.data.chat.template import load_chat_template
from llama_cpt.data.inspect_rows import packed_row_as_text, row_as_text
from llama_cpt.data.loader import batches, read_batch
from llama_cpt.data.mixture import Mixture, MixtureCorpus, build_mixture
from llama_cpt.data.packed_rows import PackedRows, open_packed_rows
from llama_cpt.data.prepare import corpora
from llama_cpt.data.prepare.corpora import open_rows, prepare
from llama_cpt.data.prepare.layout import ShardLayout
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from tests.byte_tokenizer import write_byte_tokenizer
from tests.data.packed_segments import found_segments

DPO, KTO = PreferenceConfig("sigmoid"), PreferenceConfig("kto")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_byte_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def chats(kind: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield ``count`` chat records of ``kind``; every tenth record is bad."""
    random = np.random.default_rng(seed)
    for number in range(count):
        prompt = f"{seed}.{number}" + "?" * int(random.integers(20))
        answers = ["yes " * int(random.integers(1, 9)), "no" * int(random.integers(1, 9))]
        if number % 10 == 9:
            answers[0] = ""
        if kind == "conversations":
            yield {"instruction": prompt, "input": "", "output": answers[0]}
        elif kind == "preferences" or number % 2:
            yield {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
        else:
            yield {"prompt": prompt, "completion": answers[0], "label": bool(random.integers(2))}


OBJECTIVES = {"conversations": NextTokenConfig(), "preferences": DPO, "unpaired": KTO}


def config_of(folder, vocabulary, kind, sequence_length=160):
    for name, seed in (("zh", 0), ("en", 1)):
        lines = (json.dumps(record) + "\n" for record in chats(kind, 80, seed))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "held.jsonl").write_text(json.dumps({"text": "held out"}))
    return DataConfig(
        tokenizer=str(vocabulary),
        prepared=str(folder / "prepared"),
        sequence_length=sequence_length,
        almr=0.25,
        additional=(CorpusConfig("zh", str(folder / "zh.jsonl")),),
        original=(CorpusConfig("en", str(folder / "en.jsonl")),),
        heldout=(CorpusConfig("zh", str(folder / "held.jsonl")),),
        bad_documents="skip",
        chat=ChatConfig(),
    )


def contents(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_prepared_rows_hold_the_chats(tmp_path, vocabulary, kind, monkeypatch):
    """With one or two workers and several shards, the rows contain the records."""
    monkeypatch.setattr(corpora, "make_layout", lambda *_: ShardLayout(300, 2000))
    config = config_of(tmp_path, vocabulary, kind)
    prepared = prepare(config, 1, objective=OBJECTIVES[kind])
    again = replace(config, prepared=str(tmp_path / "again"))
    prepare(again, 2, objective=OBJECTIVES[kind])
    assert contents(config.prepared) == contents(again.prepared)
    manifest = prepared.rows["zh"]
    assert (len(manifest.shards) > 1) == (kind != "unpaired")
    assert manifest.documents == 72 and manifest.skipped == {"an empty answer": 8}
    assert sum(manifest.formats.values()) == 72
    assert manifest.chat is not None and manifest.chat["kind"] == kind
    tokenizer = load_tokenizer(config.tokenizer)
    template = load_chat_template(tokenizer, "llama3")
    answers = Counter()
    for record in chats(kind, 80, 0):
        if not record.get("output", record.get("chosen", record.get("completion"))):
            continue
        prompt = [Message("user", record["prompt" if "prompt" in record else "instruction"])]
        for field in ("output", "completion", "chosen", "rejected"):
            if field in record:
                answer = f"{record[field].strip()}<|eot_id|>"
                answers[tokenizer.decode(template.prompt(prompt)) + answer] += 1
    found = Counter()
    (rows,) = open_packed_rows([prepared.folder("zh")], [None])
    block = rows.read(np.arange(len(rows)))
    for row in range(len(rows)):
        fields = {name: getattr(block, name)[row] for name in record_fields("conversations")}
        for number, (tokens, targets, mask) in found_segments(fields).items():
            if kind == "unpaired" and number % 2 == 0:
                continue
            text = tokenizer.decode([tokens[0], *targets])
            found[text] += 1
            answer = tokenizer.decode(list(itertools.compress(targets, mask)))
            assert text.endswith(f"assistant<|end_header_id|>\n\n{answer}")
    assert found == answers


def test_stale_corpus_or_other_kind_is_an_error(tmp_path, vocabulary):
    config = config_of(tmp_path, vocabulary, "preferences")
    first = prepare(config, objective=DPO)
    assert prepare(config, objective=DPO) == first
    for change, objective, complaint in (
        ({"chat": ChatConfig(loss_on="last")}, DPO, "chat.loss_on was 'assistant', is 'last'"),
        ({}, KTO, "chat.kind was 'preferences', is 'unpaired'"),
        ({}, replace(DPO, mask_format_tokens=True), "chat.mask_format_tokens was False, is True"),
        ({"chat": None}, NextTokenConfig(), "kind was 'preferences', is 'documents'"),
    ):
        with pytest.raises(UserError, match=complaint):
            prepare(replace(config, **change), objective=objective)
    fresh = replace(config, prepared=str(tmp_path / "fresh"))
    with pytest.raises(
        UserError, match=r"zh.jsonl:10: an empty answer\. Correct the source, or set"
    ):
        prepare(replace(fresh, bad_documents="error"), objective=DPO)
    with pytest.raises(UserError, match="contains no documents, 80 skipped"):
        prepare(replace(fresh, prepared=str(tmp_path / "c")), objective=NextTokenConfig())
    with pytest.raises(UserError, match=r"no chat with targets that fits .*sequence_length=8;"):
        prepare(replace(fresh, sequence_length=8), objective=DPO)
    assert not list(tmp_path.glob("fresh/*/manifest.json"))


@pytest.mark.parametrize(
    ("loss_on", "expected"),
    [("assistant", ["a<|eot_id|>", "b<|eot_id|>"]), ("last", ["b<|eot_id|>"]), ("all", None)],
)
def test_loss_on_selects_the_learned_turns(tmp_path, vocabulary, loss_on, expected):
    turns = zip(("user", "assistant") * 2, "uavb", strict=True)
    record = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "one.jsonl").write_text(json.dumps(record))
    config = replace(
        config_of(tmp_path, vocabulary, "conversations"), chat=ChatConfig(loss_on=loss_on)
    )
    one = CorpusConfig("one", str(tmp_path / "one.jsonl"))
    prepared = prepare(replace(config, additional=(one,), original=(), almr=1.0, heldout=()))
    tokenizer = load_tokenizer(config.tokenizer)
    batch = read_batch(
        Mixture(((0, Fraction(1)),), (MixtureCorpus("one", 1, ((0, Fraction(1)),)),), (), 0),
        open_rows(prepared),
        np.zeros((1, 1), np.int64),
    )
    row = jax.tree.map(lambda x: x[0], batch)
    shown = packed_row_as_text(row, 0, tokenizer).splitlines()
    learned = [line[4:] for line in shown if line.startswith("  > ")]
    if expected is None:
        assert learned[0].startswith("<|start_header_id|>user") and learned[-1] == "b<|eot_id|>"
        assert [line for line in shown if line.startswith("  | ")] == ["  | <|begin_of_text|>"]
    else:
        assert learned == expected


def test_inspected_rows_have_no_terminal_escapes(vocabulary):
    tokenizer = load_tokenizer(str(vocabulary))
    ids = np.array([tokenizer.encode("a\x1b[31m\x07\rb\u202e\x9b")], np.int32)
    ones = np.ones_like(ids)
    mask = ones.astype(np.float32)
    batch = TokenBatch(ids, ids, mask, ones, ones, ones, np.zeros((1, 2), np.uint32))
    rows = (
        row_as_text(batch, 0, tokenizer, continued=False),
        packed_row_as_text(batch, 0, tokenizer),
    )
    for shown in rows:
        assert not set(shown) & set("\x1b\x07\r\u202e\x9b") and "[31mb" in shown


def test_format_tokens_are_masked(tmp_path, vocabulary):
    config = config_of(tmp_path, vocabulary, "preferences")
    masked = prepare(config, objective=replace(DPO, mask_format_tokens=True))
    (rows, _) = packed_rows(masked)
    block = rows.read(np.arange(len(rows)))
    end = load_tokenizer(config.tokenizer).special_id("<|eot_id|>")
    assert block.loss_mask.sum() > 0
    assert not block.loss_mask[block.targets == end].any()


def packed_rows(prepared, references=None) -> list[PackedRows]:
    """Return the rows of prepared chat data, in the order of the corpora."""
    opened = open_rows(prepared, references)
    packed = [rows for rows in opened if isinstance(rows, PackedRows)]
    assert len(packed) == len(opened)
    return packed


def random_references(prepared):
    """Return random log-probabilities in the shape of each corpus, by name."""
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=(manifest.rows, 2 * manifest.units)).astype(np.float32)
        for name, manifest in prepared.rows.items()
    }


def loader(config, prepared, references=None, **changes) -> tuple[Mixture, Generator[Any]]:
    """Return the mixture of the corpora, and a generator of its batches from row 8 on."""
    sizes = {name: manifest.rows for name, manifest in prepared.rows.items()}
    mixture = build_mixture(config, sizes, seed=0, global_batch_size=8)
    settings: dict[str, Any] = dict(global_batch_size=8, num_microbatches=2)
    opened = open_rows(prepared, references)
    return mixture, batches(mixture, opened, start_row=8, **settings | changes)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_batches_of_each_kind(tmp_path, vocabulary, kind):
    config = config_of(tmp_path, vocabulary, kind)
    short = [json.dumps(record) + "\n" for record in chats(kind, 3, 5)]
    (tmp_path / "zh.jsonl").write_text("".join(short))
    prepared = prepare(config, objective=OBJECTIVES[kind])
    most = [manifest.units for manifest in prepared.rows.values()]
    assert most[0] < most[1]
    references = {} if kind == "conversations" else random_references(prepared)
    mixture, source = loader(config, prepared, references)
    batch = next(source)
    source.close()
    expected = {
        "conversations": TokenBatch,
        "preferences": PreferenceBatch,
        "unpaired": UnpairedBatch,
    }
    assert type(batch) is expected[kind]
    rows = batch if kind == "conversations" else batch.rows
    assert rows.tokens.shape == (2, 4, 160) and rows.row.shape == (2, 4, 2)
    assert rows.row[..., 0].reshape(-1).tolist() == list(range(8, 16))
    for field in ("tokens", "targets", "segment_ids", "positions", "corpus"):
        assert getattr(rows, field).dtype == np.int32
    corpus, index = mixture.locate(np.arange(8, 16))
    opened = packed_rows(prepared)
    for number, (c, i) in enumerate(zip(corpus, index, strict=True)):
        block = opened[c].read(np.array([i]))
        at = divmod(number, 4)
        for field in ("tokens", "targets", "loss_mask", "segment_ids"):
            np.testing.assert_array_equal(getattr(rows, field)[at], getattr(block, field)[0])
        assert (rows.corpus[at] == c).all()
        for segment in np.unique(rows.segment_ids[at]):
            positions = rows.positions[at][rows.segment_ids[at] == segment]
            assert positions.tolist() == list(range(len(positions)))
        if kind == "conversations":
            continue
        mask = batch.pair_mask[at] if kind == "preferences" else batch.answer_mask[at]
        count = rows.segment_ids[at].max() // 2
        assert mask.tolist() == [1.0] * count + [0.0] * (most[1] - count)
        known = list(references.values())[c][i]
        assert batch.reference_logprobs[at][: known.size].tolist() == known.tolist()
        assert batch.reference_logprobs[at].shape == (2 * most[1],)
    halves = [
        next(loader(config, prepared, references, rows_here=rows)[1])
        for rows in np.split(np.arange(4), 2)
    ]
    joined = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *halves)
    for one, other in zip(*map(jax.tree.leaves, (joined, batch)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["preferences", "unpaired"])
def test_reference_logprobs_have_the_shape_of_the_rows(tmp_path, vocabulary, kind):
    config = config_of(tmp_path, vocabulary, kind)
    prepared = prepare(config, objective=OBJECTIVES[kind])
    references = random_references(prepared)
    with pytest.raises(UserError, match="but the rows need shape"):
        open_rows(prepared, {"en": references["en"][1:]})
    with pytest.raises(UserError, match="but the rows need shape"):
        open_rows(prepared, {"en": references["en"][:, 1:]})
    wider = {name: np.pad(array, ((0, 0), (0, 9))) for name, array in references.items()}
    batch = packed_rows(prepared, wider)[1].batch(np.array([2, 0]))
    assert not isinstance(batch, TokenBatch)
    known = references["en"][[2, 0]]
    assert batch.reference_logprobs[:, : known.shape[1]].tolist() == known.tolist()
    assert batch.rows.row.tolist() == [[2, 0], [0, 0]]


def test_rated_answers_keep_their_rating(tmp_path, vocabulary):
    config = config_of(tmp_path, vocabulary, "unpaired")
    prepared = prepare(config, objective=KTO)
    expected = {}
    for record in (*chats("unpaired", 80, 0), *chats("unpaired", 80, 1)):
        if "label" in record:
            expected[record["prompt"], record["completion"].strip()] = record["label"]
        else:
            expected[record["prompt"], record["chosen"].strip()] = True
            expected[record["prompt"], record["rejected"].strip()] = False
    tokenizer = load_tokenizer(config.tokenizer)
    seen = 0
    for rows in packed_rows(prepared):
        block = rows.read(np.arange(len(rows)))
        assert block.example_mask is not None and block.good is not None
        for row, answer in zip(*np.nonzero(block.example_mask), strict=True):
            columns = block.segment_ids[row] == 2 * answer + 1
            text = tokenizer.decode(block.targets[row][columns].tolist())
            prompt, reply = (part.rsplit("\n\n", 1)[1] for part in text.split("<|eot_id|>")[:2])
            assert bool(block.good[row, answer]) == expected[prompt, reply]
            seen += 1
        assert not block.good[block.example_mask == 0].any()
    pairs = sum(
        count
        for manifest in prepared.rows.values()
        for name, count in manifest.formats.items()
        if "chosen" in name
    )
    assert seen == pairs + sum(manifest.documents for manifest in prepared.rows.values())
