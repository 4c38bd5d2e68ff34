"""Preparation gives exact rows, the same bytes for any number of workers and after any kill."""

import base64
from dataclasses import replace
import gzip
import json
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.data.prepare import corpora, shards
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.prepare.layout import PrepareSpec, ShardLayout, iter_spans, make_layout
from llama_cpt.data.rows import HeldoutDocuments, TokenRows
from llama_cpt.data.sources import files as sources
from llama_cpt.data.sources.documents import parse_documents, read_blocks
from llama_cpt.data.sources.files import find_sources
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from tests.byte_tokenizer import write_byte_tokenizer

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 31
SMALL = ShardLayout(span_bytes=300, shard_bytes=3000)
ZH_SHARDS = 15


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    return write_byte_tokenizer(tmp_path_factory.mktemp("vocabulary"), b"th", b"the")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(corpora, "make_layout", lambda *_: SMALL)


def texts(count, seed=0):
    rng = random.Random(seed)
    return [f"{i}: the " + rng.choice("ab中 ") * rng.randrange(200) for i in range(count)]


def write_lines(path, documents):
    content = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


@pytest.fixture
def config(tmp_path, vocabulary):
    """A config with two files of Chinese, one of English and one held-out file."""
    for name, seed in (("zh0.jsonl", 0), ("zh1.jsonl.gz", 1), ("en.jsonl", 2), ("held.jsonl", 3)):
        write_lines(tmp_path / name, texts(100, seed))
    return DataConfig(
        tokenizer=str(vocabulary),
        prepared=str(tmp_path / "prepared"),
        sequence_length=LENGTH,
        almr=0.33,
        additional=(CorpusConfig("zh", str(tmp_path / "zh*")),),
        original=(CorpusConfig("en", str(tmp_path / "en.jsonl")),),
        heldout=(CorpusConfig("zh", str(tmp_path / "held.jsonl")),),
    )


def contents(config):
    """Return the content of every file except locks, by relative path."""
    folder = Path(config.prepared)
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tokens_of(tokenizer, documents):
    ids = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in documents]
    return np.array([one for document in ids for one in document], np.uint32)


def shards_of(prepared, name):
    rows = TokenRows(prepared.folder(name))
    ends = np.cumsum([count for _, count in prepared.rows[name].shards])
    return np.split(rows.read(np.arange(len(rows))), ends[:-1])


def test_rows_are_the_documents_in_order(config):
    prepared, tokenizer = prepare(config), load_tokenizer(config.tokenizer)
    manifest = prepared.rows["zh"]
    expected = tokens_of(tokenizer, texts(100, 0) + texts(100, 1))
    (rows,) = shards_of(prepared, "zh")
    dropped = manifest.dropped_tokens
    assert dropped == manifest.tokens % (LENGTH + 1)
    assert np.array_equal(rows.ravel(), expected[: len(expected) - dropped])
    assert (manifest.documents, manifest.tokens) == (200, len(expected))
    assert manifest.characters == sum(map(len, texts(100, 0) + texts(100, 1)))
    heldout = HeldoutDocuments(prepared.heldout_folder("zh"))
    assert len(heldout) == prepared.heldout["zh"].rows == 100
    for text, (tokens, source_bytes) in zip(
        texts(100, 3), heldout.read(np.arange(100)), strict=True
    ):
        assert np.array_equal(tokens, tokens_of(tokenizer, [text]))
        assert source_bytes == len(text.encode())


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20), max_size=4),
    st.integers(1, 300),
    st.integers(1, 2000),
)
def test_each_shard_holds_its_documents_in_order(
    tmp_path_factory, vocabulary, files, span_bytes, shard_bytes
):
    """For all sizes, the rows and the dropped tail of a shard are its documents."""
    folder = tmp_path_factory.mktemp("corpus")
    everything = [text for file in [*files, ["enough text for a row" * 3]] for text in file]
    for number, file in enumerate([*files, ["enough text for a row" * 3]]):
        write_lines(folder / f"{number}.jsonl", file)
    source = CorpusConfig("zh", str(folder / "*.jsonl"))
    layout = ShardLayout(span_bytes, shard_bytes)
    config = DataConfig(
        str(vocabulary), str(folder / "out"), LENGTH, 1.0, (source,), bad_documents="skip"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "make_layout", lambda *_: layout)
        prepared = prepare(config)
    manifest, tokenizer = prepared.rows["zh"], load_tokenizer(config.tokenizer)
    spec = PrepareSpec("zh", "", LENGTH, "text", "skip", "")
    documents = [[] for _ in manifest.shards]
    for span in iter_spans(find_sources(source), spec, layout):
        for block in span.blocks:
            documents[span.shard] += [
                d.text for d in parse_documents(block, "text") if hasattr(d, "text")
            ]
    assert sum(documents, []) == [text for text in everything if text and not text.isspace()]
    dropped = 0
    for rows, own in zip(shards_of(prepared, "zh"), documents, strict=True):
        expected = tokens_of(tokenizer, own)
        assert rows.size == len(expected) // (LENGTH + 1) * (LENGTH + 1)
        assert np.array_equal(rows.ravel(), expected[: rows.size])
        dropped += len(expected) - rows.size
    assert dropped == manifest.dropped_tokens
    assert sum(manifest.skipped.values()) == len(everything) - manifest.documents


def test_number_of_workers_does_not_change_bytes(config, small, tmp_path):
    found = []
    for workers in (1, 2, 4):
        own = replace(config, prepared=str(tmp_path / f"by{workers}"))
        assert len(prepare(own, workers).rows["zh"].shards) > 5
        found.append(contents(own))
    assert found[0] == found[1] == found[2]


KILLED = """
import os, signal, sys
from llama_cpt.config.schema import DataConfig
from llama_cpt.config.fields import from_dict
from llama_cpt.data.prepare import corpora, layout, shards
import json

config = from_dict(DataConfig, json.loads(sys.argv[1]))
corpora.make_layout = lambda *_: layout.ShardLayout({span_bytes}, {shard_bytes})
function, after = sys.argv[2], int(sys.argv[3])
original = getattr(shards, function)
def dying(*arguments):
    global after
    after -= 1
    if after < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(shards, function, dying)
corpora.prepare(config, 2)
"""


@pytest.mark.parametrize(
    ("function", "after", "expected_finished"),
    [
        ("write_shard", 0, 0),
        ("write_shard", 3, 3),
        ("heldout_record", 20, 1),
        ("write_atomic", 3, 2),
        ("_publish", 0, ZH_SHARDS),
        ("write_manifest", 0, ZH_SHARDS),
    ],
)
def test_prepare_resumes_after_a_kill(
    config, small, tmp_path, monkeypatch, function, after, expected_finished
):
    """After SIGKILL at any point the bytes are the same, and finished shards are not repeated."""
    from llama_cpt.config.fields import to_dict

    whole = replace(config, prepared=str(tmp_path / "whole"))
    prepare(whole)
    program = KILLED.format(span_bytes=SMALL.span_bytes, shard_bytes=SMALL.shard_bytes)
    killed = subprocess.run(
        [sys.executable, "-c", program, json.dumps(to_dict(config)), function, str(after)],
        cwd=ROOT,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL

    def name_of(partial):
        return str(Path(partial).parent.relative_to(config.prepared))

    summaries = [path for path in Path(config.prepared).rglob("partial/0*.json")]
    finished = {(name_of(path.parent), int(path.stem)) for path in summaries}
    written = []
    original = shards.write_shard

    def recorded(partial, shard, *rest):
        written.append((name_of(partial), shard))
        return original(partial, shard, *rest)

    monkeypatch.setattr(shards, "write_shard", recorded)
    prepared = prepare(config)
    assert contents(config) == contents(whole)
    everything = {("zh", n) for n in range(len(prepared.rows["zh"].shards))}
    everything |= {("en", n) for n in range(len(prepared.rows["en"].shards))}
    everything |= {("heldout/zh", n) for n in range(len(prepared.heldout["zh"].shards))}
    if function == "heldout_record":
        everything = {one for one in everything if one[0] == "heldout/zh"}
    assert sorted(written) == sorted(everything - finished)
    assert len(finished) == expected_finished


def test_prepared_corpora_are_not_prepared_again(config, monkeypatch):
    first = prepare(config)
    monkeypatch.setattr(corpora, "write_corpus", None)
    monkeypatch.setattr("llama_cpt.data.sources.files.file_digest", None)
    second = prepare(config)
    assert second == first
    assert second.fingerprints() == first.fingerprints()


def test_fingerprints_do_not_depend_on_paths(config, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in tmp_path.glob("*.jsonl*"):
        (elsewhere / path.name).write_bytes(path.read_bytes())

    def moved(group):
        return tuple(
            replace(c, source=c.source.replace(str(tmp_path), str(elsewhere))) for c in group
        )

    other = replace(
        config,
        prepared=str(elsewhere / "prepared"),
        additional=moved(config.additional),
        original=moved(config.original),
        heldout=moved(config.heldout),
    )
    assert prepare(other).fingerprints() == prepare(config).fingerprints()
    prepare(replace(other, prepared=config.prepared))


def other_tokenizer(config, tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(Path(config.tokenizer).read_bytes() + base64.b64encode(b"ab") + b" 258\n")
    return replace(config, tokenizer=str(path))


def other_text(config, tmp_path):
    content = (tmp_path / "zh0.jsonl").read_bytes()
    (tmp_path / "zh0.jsonl").write_bytes(content.replace(b"the", b"eht", 1))
    return config


def other_file(config, tmp_path):
    write_lines(tmp_path / "zh2.jsonl", ["more"])
    return config


def other_field(config, tmp_path):
    return replace(config, additional=(replace(config.additional[0], text_field="body"),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, _: replace(config, sequence_length=15), "sequence_length was 31, is 15"),
        (other_field, "text_field was 'text', is 'body'"),
        (other_tokenizer, "tokenizer was '.*', is '"),
        (other_text, "source .*zh0.jsonl has changed"),
        (other_file, "there are 3 source files, there were 2"),
    ],
)
def test_stale_corpus_is_an_error_and_is_kept(config, tmp_path, change, message):
    prepare(config)
    before = contents(config)
    with pytest.raises(UserError, match=f"prepared/zh was .*{message}.* delete .*prepared/zh"):
        prepare(change(config, tmp_path))
    assert contents(config) == before


def test_touched_sources_are_read_once(config, tmp_path, monkeypatch):
    first = prepare(config)
    os.utime(tmp_path / "zh0.jsonl", (1, 1))
    read = []
    real = sources.file_digest
    monkeypatch.setattr(sources, "file_digest", lambda path: (read.append(path), real(path))[1])
    again = prepare(config)
    assert [Path(path).name for path in read] == ["zh0.jsonl"]
    assert again.fingerprints() == first.fingerprints()
    prepare(config)
    assert len(read) == 1


def test_partial_corpus_of_other_sources_is_discarded(config, small, monkeypatch, tmp_path):
    def failing(*_):
        raise UserError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_publish", failing)
        with pytest.raises(UserError, match="stop"):
            prepare(config)
    assert list(Path(config.prepared).glob("zh/partial/*.array_record"))
    prepared = prepare(other_text(config, tmp_path))
    assert (
        b"eht"
        in load_tokenizer(config.tokenizer)
        .decode(shards_of(prepared, "zh")[0].ravel().tolist())
        .encode()
    )
    assert not list(Path(config.prepared).rglob("partial"))


def test_prepared_rows_do_not_need_their_sources(config, tmp_path, capsys):
    first = prepare(config)
    for path in tmp_path.glob("*.jsonl*"):
        path.unlink()
    assert prepare(config) == first
    assert "no file matches" in capsys.readouterr().err
    other = replace(config.original[0], source=str(tmp_path / "mistyped.jsonl"))
    with pytest.raises(UserError, match="no file matches.*were prepared from different files"):
        prepare(replace(config, original=(other,)))


def test_bad_documents_are_an_error_or_skipped(config, tmp_path):
    bad = [b'{"body": 1}\n', b"not JSON\n", b'{"text": "\xff"}\n', b'{"text": 3}\n', b"not JSON\n"]
    content = (tmp_path / "en.jsonl").read_bytes()
    (tmp_path / "en.jsonl").write_bytes(content + b"".join(bad))
    for workers in (1, 2):
        with pytest.raises(
            UserError, match=r"en.jsonl:101: no field 'text' \(its fields: body\).*skip"
        ):
            prepare(config, workers)
    skipping = replace(config, bad_documents="skip")
    manifest = prepare(skipping).rows["en"]
    assert manifest.documents == 100
    assert manifest.skipped == {
        "no field 'text'": 1,
        "not JSON": 2,
        "not UTF-8": 1,
        "text is not a string": 1,
    }
    with pytest.raises(UserError, match="bad_documents was 'skip', is 'error'"):
        prepare(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"corpus 'en' .*en.jsonl\) holds no documents; add text\."),
        (b"\n \n", "holds no documents"),
        (b"what?\n", "holds no documents, 1 skipped"),
        (
            b'{"text": "short"}\n',
            r"has 7 tokens, but a row takes 32; add text with 25 more tokens.*sequence_length",
        ),
    ],
)
def test_corpus_without_rows_is_an_error(config, tmp_path, content, message):
    (tmp_path / "en.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(replace(config, bad_documents="skip"))
    assert not (Path(config.prepared) / "en" / "manifest.json").exists()


def test_held_out_file_that_is_trained_on_is_a_warning(config, capsys):
    prepare(
        replace(config, heldout=(replace(config.heldout[0], source=config.original[0].source),))
    )
    assert "held-out corpus 'zh' and corpus 'en' share" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["heldout", "a/b", "..", ""])
def test_corpus_name_must_be_a_folder_name(config, name):
    with pytest.raises(UserError, match="corpus name .* must be a folder name"):
        prepare(replace(config, original=(replace(config.original[0], name=name),)))


def test_documents_changed_by_the_tokenizer_are_counted(config, tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the a b 中 0 1 2 3 4 5 6 7 8 9 :"] * 50),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    write_lines(tmp_path / "en.jsonl", ["the a b", "ＡＢ full width", "the\ttab", "the b"] * 4)
    config = replace(config, tokenizer=str(tmp_path / "tokenizer.model"))
    manifest = prepare(config).rows["en"]
    assert (manifest.checked_documents, manifest.lossy_documents) == (16, 8)


def test_shard_size_grows_with_sources_and_rows():
    assert make_layout(10**6, 8192).shard_bytes == 64 << 20
    assert make_layout(10**12, 8192).shard_bytes == 10**12 // 64
    assert make_layout(10**6, 131_072).shard_bytes >= 4 * 1000 * 131_073


def test_concurrent_call_waits_for_the_first(config, small):
    """Of two concurrent processes one prepares, and both return the same corpora."""
    from llama_cpt.config.fields import to_dict

    program = (
        "import sys, json; from llama_cpt.config.schema import DataConfig\n"
        "from llama_cpt.config.fields import from_dict\n"
        "from llama_cpt.data.prepare.corpora import prepare\n"
        "print(prepare(from_dict(DataConfig, json.loads(sys.argv[1]))).fingerprints())"
    )
    command = [sys.executable, "-c", program, json.dumps(to_dict(config))]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    output = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert output[0] == output[1]
    assert output[0].decode().strip() == str(prepare(config).fingerprints())


NAMES = ("t [1].jsonl", "a::b.jsonl", "* {?} #%20'.jsonl", "~t.jsonl")


@pytest.mark.parametrize("name", NAMES)
def test_existing_source_is_read_literally(config, tmp_path, capsys, name):
    folder = tmp_path / "[d] a::b"
    folder.mkdir()
    write_lines(folder / name, texts(100, 4))
    write_lines(folder / "t 1.jsonl", texts(100, 5))
    literal = replace(
        config,
        prepared=str(tmp_path / "rows[1]*"),
        additional=(CorpusConfig("zh", str(folder / name)),),
    )
    first = prepare(literal)
    assert [source["path"] for source in first.rows["zh"].sources] == [str(folder / name)]
    assert [len(TokenRows(first.folder("zh")))] == [first.rows["zh"].rows]
    # Finished shards are found again below such a name, and the rows outlive their source.
    (folder / "t 1.jsonl").unlink()
    (folder / name).unlink()
    assert prepare(literal) == first
    assert "are used as they were prepared" in capsys.readouterr().err


def test_pattern_below_an_existing_folder(config, tmp_path):
    folder = tmp_path / "[d]*"
    folder.mkdir()
    for name in ("a1.jsonl", "a2.jsonl", "b.jsonl"):
        write_lines(folder / name, texts(10, 4))
    found = find_sources(CorpusConfig("zh", str(folder / "a?.jsonl")))
    assert found.files == (str(folder / "a1.jsonl"), str(folder / "a2.jsonl"))
    corpus = replace(config.additional[0], source=str(folder / "a?.jsonl"))
    first = prepare(replace(config, additional=(corpus,)))
    shutil.rmtree(folder)
    assert prepare(replace(config, additional=(corpus,))) == first


@pytest.mark.parametrize("name", ["t [1].parquet", "a::b.parquet", "a::b.txt", "c::d.jsonl.gz"])
def test_every_kind_of_source_is_read_by_its_literal_name(tmp_path, name):
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table({"text": ["one"]}), tmp_path / name)
    elif name.endswith(".txt"):
        (tmp_path / name).write_text("one")
    else:
        write_lines(tmp_path / name, ["one"])
    blocks = read_blocks(find_sources(CorpusConfig("zh", str(tmp_path / name))), "text", 1 << 20)
    (document,) = (one for block in blocks for one in parse_documents(block, "text"))
    assert document.text == "one" and document.path == str(tmp_path / name)
