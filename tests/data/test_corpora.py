"""Shards contain exact rows, with the same bytes for any number of workers and after a kill."""

from dataclasses import replace
import json
from pathlib import Path
import signal
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import sentencepiece

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.data.prepare import corpora, shards
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.prepare.layout import PrepareSpec, ShardLayout, iter_spans, make_layout
from llama_cpt.data.rows import TOKEN_BITS, HeldoutDocuments
from llama_cpt.data.sources.documents import Document, parse_documents
from llama_cpt.data.sources.files import find_sources
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from tests.conftest import ROOT
from tests.data.corpus_files import (
    LENGTH,
    SMALL_SHARDS,
    prepared_files,
    rows_by_shard,
    texts,
    tokens_of,
    write_lines,
)

ZH_SHARDS = 15


def test_rows_are_the_documents_in_order(config):
    prepared, tokenizer = prepare(config), load_tokenizer(config.tokenizer)
    manifest = prepared.rows["zh"]
    expected = tokens_of(tokenizer, texts(100, 0) + texts(100, 1))
    (rows,) = rows_by_shard(prepared, "zh")
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
        assert np.array_equal(tokens, tokens_of(tokenizer, [text]) & TOKEN_BITS)
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
    """For all layouts, the rows and dropped tokens of a shard are the shard's documents."""
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
                d.text for d in parse_documents(block, "text") if isinstance(d, Document)
            ]
    assert sum(documents, []) == [text for text in everything if text and not text.isspace()]
    dropped = 0
    for rows, own in zip(rows_by_shard(prepared, "zh"), documents, strict=True):
        expected = tokens_of(tokenizer, own)
        assert rows.size == len(expected) // (LENGTH + 1) * (LENGTH + 1)
        assert np.array_equal(rows.ravel(), expected[: rows.size])
        dropped += len(expected) - rows.size
    assert dropped == manifest.dropped_tokens
    assert sum(manifest.skipped.values()) == len(everything) - manifest.documents


def test_number_of_workers_does_not_change_bytes(config, small_shards, tmp_path):
    found = []
    for workers in (1, 2, 4):
        own = replace(config, prepared=str(tmp_path / f"by{workers}"))
        assert len(prepare(own, workers).rows["zh"].shards) > 5
        found.append(prepared_files(own))
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
    config, small_shards, tmp_path, monkeypatch, function, after, expected_finished
):
    """After SIGKILL at any point, the bytes are the same and finished shards are not rewritten."""
    from llama_cpt.config.fields import to_dict

    whole = replace(config, prepared=str(tmp_path / "whole"))
    prepare(whole)
    program = KILLED.format(
        span_bytes=SMALL_SHARDS.span_bytes, shard_bytes=SMALL_SHARDS.shard_bytes
    )
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
    assert prepared_files(config) == prepared_files(whole)
    everything = {("zh", n) for n in range(len(prepared.rows["zh"].shards))}
    everything |= {("en", n) for n in range(len(prepared.rows["en"].shards))}
    everything |= {("heldout/zh", n) for n in range(len(prepared.heldout["zh"].shards))}
    if function == "heldout_record":
        everything = {one for one in everything if one[0] == "heldout/zh"}
    assert sorted(written) == sorted(everything - finished)
    assert len(finished) == expected_finished


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


def test_concurrent_call_waits_for_the_first(config, small_shards):
    """Of two concurrent processes, one prepares the corpora and both return them."""
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
