"""Replay text is deterministic, resumable, divided into parts, and filtered."""

import json
from pathlib import Path

import pytest

from llama_cpt.make_replay import main
from llama_cpt.replay import shards, writer
from llama_cpt.replay.prefixes import read_prefixes
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.prompt_format import prompt_format
from llama_cpt.weights.source import open_source
from tests.evaluation.benchmark_files import save_model

SIZES = "--rows 4 --max-tokens 16 --min-tokens 4".split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=64)


@pytest.fixture
def write(model):
    def write(folder, tokens, *options):
        return main([model, "--tokens", str(tokens), "--output", str(folder), *SIZES, *options])

    return write


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("replay*"))}


def texts(folder):
    lines = [
        line for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()
    ]
    return [json.loads(line)["text"] for line in lines]


def summaries(folder, part="00000-of-00001"):
    return [json.loads(p.read_text()) for p in sorted(folder.glob(f"replay-{part}-*.json"))]


def test_stopped_command_continues_with_the_same_documents(write, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BATCHES", 2)
    whole, part = tmp_path / "whole", tmp_path / "part"
    write(whole, 260)
    counts = summaries(whole)
    total = sum(one["tokens"] for one in counts)
    assert total >= 260 and len(counts) > 1 and counts[0]["batches"] == 2
    # The command is stopped within a shard and between two shards.
    for tokens in (1, 65, 130):
        # A kill between the writing of a shard and of its summary leaves the former summary.
        before = {path: path.read_bytes() for path in part.glob("*-of-*-*.json")}
        write(part, tokens)
        for path, content in before.items():
            path.write_bytes(content)
    write(part, 260)
    assert files(part) == files(whole)
    # A complete part is not changed.
    write(whole, 260)
    assert files(part) == files(whole)
    assert f"{total:,} tokens" in capsys.readouterr().out
    assert len(set(texts(whole))) == len(texts(whole))
    # The documents do not depend on the size of the shards.
    monkeypatch.undo()
    write(tmp_path / "one", 260)
    assert texts(tmp_path / "one") == texts(whole) and len(summaries(tmp_path / "one")) == 1


def test_shard_of_long_documents_is_complete_earlier():
    counts = dict.fromkeys(shards.COUNTS, 1)
    shard = shards.Shard().add(["a"], counts)
    assert shard.next() == shard
    shard = shard.add(["a" * shards.SHARD_BYTES], counts)
    assert shard.next() == shards.Shard(1, first=2)
    assert shard.counts == dict.fromkeys(shards.COUNTS, 2)


def test_a_batch_replaces_only_the_last_shard(write, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BATCHES", 2)
    write(tmp_path, 200)
    before = {path: path.stat().st_ino for path in tmp_path.glob("replay*")}
    last = f"replay-00000-of-00001-{len(summaries(tmp_path)) - 1:05}"
    write(tmp_path, 201 + summaries(tmp_path)[-1]["tokens"])
    replaced = {path.stem for path, inode in before.items() if path.stat().st_ino != inode}
    assert replaced <= {last} and len(files(tmp_path)) > len(before)


def test_parts_are_different_documents(write, tmp_path):
    for part in ("1/2", "2/2"):
        write(tmp_path, 160, "--part", part)
    for part in ("00000-of-00002", "00001-of-00002"):
        assert 80 <= sum(one["tokens"] for one in summaries(tmp_path, part))
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert len(set(texts(tmp_path))) == len(texts(tmp_path))


def test_documents_continue_the_prefixes_in_turn(write, model, tmp_path):
    source = tmp_path / "documents.jsonl"
    beginnings = ["first hill", "second hill", "third water"]
    lines = [json.dumps({"body": f"{one} is a long text"}) + "\n" for one in beginnings]
    source.write_text("".join(lines) + '{"body": "a"}\n')
    options = "--text-field", "body", "--prefix-tokens", "6"
    write(tmp_path / "out", 60, "--prefixes", str(source), *options)
    tokenizer = prompt_format(open_source(model)).tokenizer
    prefixes = read_prefixes(str(source), "body", tokenizer, 6)
    # The last document is too short.
    assert len(prefixes) == 3
    for prefix, beginning in zip(prefixes, beginnings, strict=True):
        assert f"{beginning} is a long text".startswith(prefix) and tokenizer.encode(prefix)
    for number, text in enumerate(texts(tmp_path / "out")):
        assert text.startswith(prefixes[number % 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--temperature", "0.5"), "temperature was 1.0 and is 0.5 now"),
        (("--part", "3/2"), "must be NUMBER/PARTS"),
        (("--min-tokens", "17"), "--max-tokens 16 must be at least 17"),
        (("--max-tokens", "64"), "the model's context has 64 tokens"),
        (("--start-token", "<none>"), "no special token of this name"),
        (("--language", "xx"), "--language xx: must be one of"),
        (("--prefixes", "nothing.jsonl", "--prefix-tokens", "4"), "no file matches nothing.jsonl"),
    ],
)
def test_wrong_settings_are_one_error(options, message, write, tmp_path):
    write(tmp_path, 1)
    before = files(tmp_path)
    with pytest.raises(UserError, match=message):
        write(tmp_path, 100, *options)
    assert files(tmp_path) == before


def test_damaged_shard_is_an_error(write, tmp_path):
    write(tmp_path, 1)
    [shard] = tmp_path.glob("*.jsonl")
    shard.write_bytes(shard.read_bytes().replace(b"text", b"tixt", 1))
    with pytest.raises(UserError, match="was changed after it was written"):
        write(tmp_path, 100)


def test_filters_that_leave_out_everything_are_an_error(write, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MOST_EMPTY", 12)
    with pytest.raises(UserError, match=r"12 documents were all left out .\d too short, \d in ano"):
        # The tiny model writes random letters, never Chinese.
        write(tmp_path, 100, "--language", "zh")
    assert texts(tmp_path) == []


@pytest.mark.parametrize("content", ['{"format": 1, "settings": {}}', '{"format": 2}', "[]"])
def test_damaged_manifest_is_an_error(content, write, tmp_path):
    write(tmp_path, 1)
    file = tmp_path / "replay-00000-of-00001.json"
    settings = json.loads(file.read_text())["settings"]
    file.write_text(content.replace("{}", json.dumps(settings)))
    with pytest.raises(UserError, match="replay-00000-of-00001.json: .*delete the folder"):
        write(tmp_path, 100)


@pytest.mark.parametrize(
    "values",
    [{"batches": 0}, {"batches": True}, {"bytes": -1}, {"tokens": "3"}, {"sha256": None}],
    ids=str,
)
def test_damaged_summary_is_an_error(values, write, tmp_path):
    write(tmp_path, 1)
    file = tmp_path / "replay-00000-of-00001-00000.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(UserError, match="00000.json: not the summary of a replay shard; set ano"):
        write(tmp_path, 100)
