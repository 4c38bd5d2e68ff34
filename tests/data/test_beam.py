"""Preparation with Apache Beam: the same bytes as on one machine, resume and user errors."""

import bz2
from dataclasses import replace
from functools import partial
import gzip
import json
import logging
import lzma
from pathlib import Path
import random
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from llama_cpt.config.schema import ChatConfig, CorpusConfig, DataConfig
from llama_cpt.data.prepare import corpora
from llama_cpt.data.prepare import layout as prepare_layout
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.prepare.dropped import (
    DROPPED_FILE,
    DroppedLists,
    dropped_documents,
    write_dropped,
)
from llama_cpt.data.prepare.layout import (
    PrepareSpec,
    ShardLayout,
    block_offsets,
    iter_spans,
    split_into_parts,
)
from llama_cpt.data.sources.files import find_sources, with_digests
from llama_cpt.data.tokenizer.document_tokens import DocumentTokens
from llama_cpt.prepare import main
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.storage import UnreachableError
from tests.byte_tokenizer import write_byte_tokenizer
from tests.corpus_report.planted import planted
from tests.storage_server import bucket

__all__ = ["bucket", "planted"]

SMALL = ShardLayout(span_bytes=300, shard_bytes=3000)


def texts(count, seed):
    rng = random.Random(seed)
    return [f"{i}: the " + rng.choice("ab中 ") * rng.randrange(200) for i in range(count)]


def lines(documents):
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(corpora, "make_layout", lambda *_: SMALL)
    monkeypatch.setattr(prepare_layout, "PART_BYTES", 900)


@pytest.fixture
def config(tmp_path):
    """A config with a source file of each format."""
    (tmp_path / "zh0.jsonl").write_bytes(lines(texts(60, 0)))
    (tmp_path / "zh1.jsonl.gz").write_bytes(gzip.compress(lines(texts(60, 1))))
    (tmp_path / "zh2.jsonl.bz2").write_bytes(bz2.compress(lines(texts(30, 2))))
    (tmp_path / "zh3.jsonl.xz").write_bytes(lzma.compress(lines(texts(30, 3))))
    with pyarrow.CompressedOutputStream(str(tmp_path / "zh4.jsonl.zst"), "zstd") as file:
        file.write(lines(texts(30, 4)))
    table = pyarrow.table({"text": texts(60, 5)})
    pyarrow.parquet.write_table(table, tmp_path / "zh5.parquet", row_group_size=7)
    (tmp_path / "zh6.txt").write_text("one document\n" * 40)
    (tmp_path / "held.jsonl").write_bytes(lines(texts(40, 6)))
    return DataConfig(
        tokenizer=str(write_byte_tokenizer(tmp_path)),
        prepared=str(tmp_path / "prepared"),
        sequence_length=31,
        almr=1.0,
        additional=(CorpusConfig("zh", str(tmp_path / "zh*")),),
        heldout=(CorpusConfig("zh", str(tmp_path / "held.jsonl")),),
    )


def contents(folder):
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_parts_read_separately_are_the_spans(tmp_path_factory, data):
    """For all layouts, the spans of separately read parts are the spans of the whole corpus."""
    folder = tmp_path_factory.mktemp("sources")
    for number in range(3):
        seed, count = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 30))
        content = data.draw(st.sampled_from((b"", b"\xef\xbb\xbf", b"\n\n"))) + lines(
            texts(count, seed)
        )
        (folder / f"{number}a.jsonl").write_bytes(content)
        (folder / f"{number}b.jsonl.gz").write_bytes(gzip.compress(content))
        table = pyarrow.table({"text": texts(count, seed)})
        pyarrow.parquet.write_table(table, folder / f"{number}c.parquet", row_group_size=3)
    sources = find_sources(CorpusConfig("zh", str(folder / "*")))
    spec = PrepareSpec("zh", "", 31, "text", "error", "", DocumentTokens((256,), 257))
    layout = ShardLayout(data.draw(st.integers(1, 900)), data.draw(st.integers(1, 3000)))
    files = range(len(sources.files))
    offsets = [offset for f in files for offset in block_offsets(sources, spec, layout, f)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_layout, "PART_BYTES", data.draw(st.integers(1, 2000)))
        parts = list(split_into_parts(offsets, layout))

    def known(spans):
        return [(span.shard, [(b.path, b.first, b.raw) for b in span.blocks]) for span in spans]

    found = [span for part in parts for span in iter_spans(sources, spec, layout, part)]
    assert known(found) == known(iter_spans(sources, spec, layout))


@pytest.fixture
def by_beam():
    """A function that calls ``prepare`` with Beam and the options of Beam."""
    pytest.importorskip("apache_beam", reason="pip install -e '.[beam]'")
    from llama_cpt.data.prepare.beam import write_corpora

    def call(config, *options):
        return prepare(config, write_missing=partial(write_corpora, options=list(options)))

    return call


def test_beam_writes_the_bytes_of_one_machine(by_beam, config, small, tmp_path, caplog):
    caplog.set_level(logging.INFO, "llama_cpt")
    local = prepare(replace(config, prepared=str(tmp_path / "local")), 1)
    found = by_beam(config)
    assert found.fingerprints() == local.fingerprints()
    assert contents(config.prepared) == contents(tmp_path / "local")
    assert len(found.rows["zh"].shards) > 5
    manifests = (found.rows["zh"], found.heldout["zh"])
    documents = sum(manifest.documents for manifest in manifests)
    assert f"{documents:,} documents, " in caplog.text


def test_dropped_documents_are_left_out_of_all_formats(by_beam, config, small, tmp_path):
    """The listed documents of JSON Lines, Parquet and text files are in no row."""
    listed = [(0, 3, 1), (1, 60, 0), (4, 1, 1), (5, 8, 1), (5, 60, 1), (6, 0, 1)]
    [corpus] = config.additional
    sources = {"zh": with_digests("zh", find_sources(corpus).stats())}
    dropped = {"zh": dropped_documents(*np.array(listed).T)}
    lists = DroppedLists(("overlap",), "", dropped, sources)
    local = replace(config, prepared=str(tmp_path / "local"))
    for one in (config, local):
        write_dropped(one.prepared, lists)
    manifest = prepare(local, 1).rows["zh"]
    assert manifest.documents == 60 + 60 + 30 + 30 + 30 + 60 + 1 - 6
    assert manifest.dropped_documents == {"duplicate": 1, "overlap": 5}
    by_beam(config)
    assert contents(config.prepared) == contents(local.prepared)


def test_beam_and_workers_leave_out_the_same_documents(planted, small, tmp_path):
    """The lists and the rows are the same byte for byte."""
    pytest.importorskip("apache_beam", reason="pip install -e '.[beam]'")
    found = []
    for options in (["--workers", "1"], ["--workers", "4"], ["--runner", "beam"]):
        prepared = str(tmp_path / options[1])
        drops = ["--drop-overlap", "--drop-duplicates", "--data.prepared", prepared]
        main([planted, *drops, *options])
        found.append(contents(prepared))
    assert found[0] == found[1] == found[2] and DROPPED_FILE in found[0]
    manifest = json.loads(found[0]["zh/manifest.json"])
    assert len(manifest["shards"]) > 3 and manifest["dropped_documents"] == {"duplicate": 1}


def test_bad_document_is_one_line_and_finished_work_is_kept(
    by_beam, config, small, tmp_path, monkeypatch, caplog
):
    from llama_cpt.data.prepare import beam

    with (tmp_path / "zh4.jsonl.zst").open("wb") as file:
        with pyarrow.CompressedOutputStream(file, "zstd") as packed:
            packed.write(lines(texts(30, 4)) + b"{}\n")
    with pytest.raises(
        UserError, match="zh4.jsonl.zst:31: no field 'text'.*Correct the"
    ) as by_many:
        by_beam(config)
    assert not list(Path(config.prepared).rglob("manifest.json"))
    finished = {path.stem for path in Path(config.prepared).rglob("partial/0*.array_record")}
    with pytest.raises(UserError) as by_one:
        prepare(replace(config, prepared=str(tmp_path / "local")), 1)
    assert str(by_many.value) == str(by_one.value)
    written = []
    whole = beam.write_shard
    monkeypatch.setattr(
        beam,
        "write_shard",
        lambda folder, shard, *rest: written.append(f"{shard:05}") or whole(folder, shard, *rest),
    )
    caplog.clear()
    caplog.set_level(logging.INFO, "llama_cpt")
    with pytest.raises(UserError, match="zh4"):
        by_beam(config)
    assert " 0 parts, 0 shards, 0 records in this call" in caplog.text
    assert finished and len(written) == 1 and written[0] not in finished


def test_beam_reads_and_writes_a_bucket(by_beam, config, small, tmp_path, bucket):
    local = prepare(replace(config, prepared=str(tmp_path / "local")), 1)
    for path in [*tmp_path.glob("zh*"), tmp_path / "held.jsonl"]:
        bucket.put(f"in/{path.name}", path.read_bytes(), None)
    remote = replace(
        config,
        prepared="gs://bucket/out",
        additional=(CorpusConfig("zh", "gs://bucket/in/zh*"),),
        heldout=(CorpusConfig("zh", "gs://bucket/in/held.jsonl"),),
    )
    assert by_beam(remote).rows["zh"].digest == local.rows["zh"].digest
    names = [name for name in contents(tmp_path / "local") if name.endswith(".array_record")]
    for name in names:
        assert bucket.objects[f"out/{name}"] == (tmp_path / "local" / name).read_bytes()
    assert not [path for path in bucket.objects if "partial" in path or "draft" in path]


def test_beam_prepares_chats(by_beam, config, small, tmp_path):
    chats = [{"prompt": f"p{i}", "completion": text[:20]} for i, text in enumerate(texts(80, 7))]
    (tmp_path / "chat.json").write_text(json.dumps(chats))
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, chats)))
    own = replace(
        config,
        sequence_length=127,
        additional=(CorpusConfig("zh", str(tmp_path / "chat.json*")),),
        chat=ChatConfig(),
    )
    local = replace(own, prepared=str(tmp_path / "local"))
    prepare(local, 1)
    by_beam(own)
    assert contents(own.prepared) == contents(local.prepared)


def test_local_path_with_a_remote_runner_is_an_error(by_beam, config, monkeypatch):
    with pytest.raises(UserError, match="'zh': .* is a local path.* FlinkRunner .* gs:// paths"):
        by_beam(config, "--runner", "FlinkRunner")
    monkeypatch.setattr("llama_cpt.data.prepare.beam.LOCAL_RUNNERS", ("Flunk",))
    with pytest.raises(UserError, match="Apache Beam: Unexpected pipeline runner: Flunk"):
        by_beam(config, "--runner", "Flunk")


def test_transient_storage_errors_are_left_to_beam(tmp_path):
    """Beam receives transient errors, which it retries; a user error is written to a file."""
    pytest.importorskip("apache_beam", reason="pip install -e '.[beam]'")
    from llama_cpt.data.prepare.beam import record_failure

    (tmp_path / "beam" / "failed").mkdir(parents=True)
    with pytest.raises(UnreachableError), record_failure(str(tmp_path), "0"):
        raise UnreachableError("a mount is broken.")
    with record_failure(str(tmp_path), "1"):
        raise UserError("a document is broken.")
    assert [file.name for file in (tmp_path / "beam" / "failed").iterdir()] == ["1.txt"]


def test_missing_beam_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "llama_cpt.data.prepare.beam", raising=False)
    with pytest.raises(UserError, match=r"pip install -e '\.\[beam\]'"):
        main(["config.py", "--runner", "beam"])
    with pytest.raises(UserError, match="only for --runner beam"):
        main(["config.py", "--", "--runner", "DataflowRunner"])
