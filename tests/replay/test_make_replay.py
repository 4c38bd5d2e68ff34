"""Replay text is deterministic, resumable, divided into parts, and filtered."""

import json
from pathlib import Path

import pytest

from llama_cpt.make_replay import main
from llama_cpt.replay import writer
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


def test_stopped_command_continues_with_the_same_documents(write, tmp_path, capsys):
    whole, part = tmp_path / "whole", tmp_path / "part"
    write(whole, 200)
    manifest = json.loads((whole / "replay-00000-of-00001.json").read_text())
    counts = [shard["tokens"] for shard in manifest["shards"]]
    assert sum(counts) >= 200 > sum(counts[:-1]) and len(counts) > 2
    write(part, 1)
    # A kill between the writing of a shard and of the manifest leaves a shard without an entry.
    before = (part / "replay-00000-of-00001.json").read_bytes()
    write(part, 1 + counts[0])
    (part / "replay-00000-of-00001.json").write_bytes(before)
    write(part, 200)
    assert files(part) == files(whole)
    # A complete part is not changed.
    write(whole, 200)
    assert files(part) == files(whole)
    assert f"{sum(counts):,} tokens" in capsys.readouterr().out
    assert len(set(texts(whole))) == len(texts(whole))


def test_parts_are_different_documents(write, tmp_path):
    for part in ("1/2", "2/2"):
        write(tmp_path, 160, "--part", part)
    found = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    for manifest in found:
        assert 80 <= sum(shard["tokens"] for shard in manifest["shards"])
    assert len({shard["file"] for manifest in found for shard in manifest["shards"]}) == len(
        list(tmp_path.glob("*.jsonl"))
    )
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


@pytest.mark.parametrize("content", ['{"format": 1}', '{"format": 1, "settings": {}}', "[]"])
def test_damaged_manifest_is_an_error(content, write, tmp_path):
    write(tmp_path, 1)
    file = tmp_path / "replay-00000-of-00001.json"
    settings = json.loads(file.read_text())["settings"]
    file.write_text(content.replace("{}", json.dumps(settings)))
    with pytest.raises(UserError, match="replay-00000-of-00001.json: .*delete the folder"):
        write(tmp_path, 100)
