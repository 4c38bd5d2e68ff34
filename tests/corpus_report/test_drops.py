"""Planted copies are left out of the rows, which are the same for any number of workers."""

from dataclasses import replace
import gzip
import json
import os
from pathlib import Path
import shutil

import numpy as np
import pytest

from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import ChatConfig
from llama_cpt.corpus_report import scan
from llama_cpt.corpus_report.drops import select_dropped
from llama_cpt.corpus_report.report import make_index
from llama_cpt.corpus_report.scan import scan_corpora
from llama_cpt.data.prepare import corpora
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.prepare.dropped import DROPPED_FILE, REASONS, read_dropped
from llama_cpt.data.prepare.layout import ShardLayout
from llama_cpt.data.rows import TOKEN_BITS, TokenRows, require_manifest
from llama_cpt.data.sources import files
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.prepare import main
from llama_cpt.runtime.errors import UsageError, UserError
from tests.corpus_report.planted import (
    EN_PLANTED,
    HELDOUT,
    QUESTION,
    WORDS,
    ZH_PLANTED,
    planted,
    write_lines,
)
from tests.data.corpus_files import prepared_files

__all__ = ["planted"]
DROPS = ["--drop-overlap", "--drop-duplicates"]


def documents(config, name):
    """Return the documents in the rows of a corpus, without the part that does not fill a row."""
    folder = f"{config.data.prepared}/{name}"
    rows = TokenRows(folder)
    tokens = rows.read(np.arange(len(rows))).ravel()
    tokenizer = load_tokenizer(config.data.tokenizer)
    parts = np.split(tokens & TOKEN_BITS, np.flatnonzero(tokens > TOKEN_BITS)[1:])
    return [
        tokenizer.decode([t for t in part.tolist()[1:] if t != tokenizer.eos_id]) for part in parts
    ]


def left_out(lists, name):
    """Return the reason of each document that is left out, by file and number."""
    return {
        file: {
            number: REASONS[reason]
            for first, last, reason in ranges.tolist()
            for number in range(first, last + 1)
        }
        for file, ranges in lists.of(name).files.items()
    }


def test_copies_are_left_out_for_any_number_of_workers(planted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpora, "make_layout", lambda *_: ShardLayout(300, 3000))
    write_lines(tmp_path / "held.jsonl", [HELDOUT, QUESTION])
    found = []
    for workers in (1, 2, 4):
        prepared = str(tmp_path / f"by{workers}")
        main([planted, *DROPS, "--data.prepared", prepared, "--workers", str(workers)])
        config = load_config(planted, ["--data.prepared", prepared])
        found.append(prepared_files(config.data))
    assert found[0] == found[1] == found[2]
    assert "  2 documents left out: 1 duplicate, 1 overlap" in capsys.readouterr().out
    lists = read_dropped(prepared)
    assert left_out(lists, "zh") == {0: {6: "overlap", 42: "duplicate"}}
    assert left_out(lists, "en") == {0: {10: "overlap", 11: "duplicate", 12: "duplicate"}}
    zh = require_manifest(f"{prepared}/zh")
    assert (zh.dropped, zh.documents) == (lists.of("zh").digest, len(ZH_PLANTED) - 2)
    # Rows are cut per shard, so that the last document of a shard is incomplete.
    kept = [text for number, text in enumerate(EN_PLANTED, 1) if number not in (10, 11, 12)]
    rows = documents(config, "en")
    assert len(rows) == len(kept)
    assert all(text.startswith(row) for row, text in zip(rows, kept, strict=True))


def test_train_uses_the_lists_and_prepare_never_ignores_them(planted):
    config = load_config(planted)
    main([planted, *DROPS])
    first = prepared_files(config.data)
    # A run without options, which resumes after a kill of prepare, prepares the same rows.
    for path in Path(config.data.prepared).rglob("manifest.json"):
        path.unlink()
    prepare(config.data)
    assert prepared_files(config.data) == first
    with pytest.raises(UserError, match=r"dropped.jsonl.gz lists documents .*duplicate, overlap"):
        main([planted])
    with pytest.raises(UserError, match="zh was prepared without leaving out the same documents"):
        main([planted, "--drop-overlap"])
    assert prepared_files(config.data) == first
    # The same options read nothing again.
    main([planted, *DROPS])
    assert prepared_files(config.data) == first


def test_rows_without_dropped_documents_are_the_rows_of_no_option(planted, tmp_path):
    write_lines(tmp_path / "zh.jsonl", ZH_PLANTED[:5])
    write_lines(tmp_path / "en.jsonl", EN_PLANTED[:5])
    main([planted])
    config = load_config(planted)
    first = prepared_files(config.data)
    main([planted, *DROPS])
    second = prepared_files(config.data)
    head, *lines = map(json.loads, gzip.decompress(second.pop(DROPPED_FILE)).splitlines())
    assert head["corpora"] == {"zh": 1, "en": 1}
    assert [(line["corpus"], Path(line["path"]).name) for line in lines] == [
        ("zh", "zh.jsonl"),
        ("en", "en.jsonl"),
    ]
    assert second == first


def test_sources_are_digested_once(planted, tmp_path, monkeypatch):
    digested, digest = [], files.file_digest
    monkeypatch.setattr(files, "file_digest", lambda path: digested.append(path) or digest(path))
    config = load_config(planted)
    select_dropped(config, ["duplicate"], "")
    prepare(config.data)
    names = sorted(Path(path).name for path in digested)
    assert names == ["en.jsonl", "held.jsonl", "zh.jsonl"]
    # A file of the same size with another time is read again, and belongs to another list.
    shutil.rmtree(Path(config.data.prepared) / "zh")
    (tmp_path / "zh.jsonl").write_text((tmp_path / "zh.jsonl").read_text().replace("a", "b"))
    os.utime(tmp_path / "zh.jsonl", ns=(1, 1))
    with pytest.raises(UserError, match="was written for other source files; run prepare with --"):
        prepare(config.data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report", "--drop-overlap"], "--report prepares nothing"),
        (["--eval-data", "x"], "--eval-data is only for"),
        (["--drop-duplicates", "--eval-data", "x"], "--eval-data is only for"),
    ],
)
def test_options_that_cannot_be_combined(planted, options, message):
    with pytest.raises(UsageError, match=message):
        main([planted, *options])


def test_errors_of_a_user(planted, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="contains no benchmark"):
        main([planted, "--drop-overlap", "--eval-data", str(tmp_path)])
    monkeypatch.setattr("llama_cpt.runtime.extras.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"needs datasketch and py3langid: pip install -e '.\[report"
    ):
        main([planted, "--report"])


def test_copy_in_a_long_document_is_found_once(planted, monkeypatch):
    """The copy crosses the border of two pieces and is in the part that both contain."""
    monkeypatch.setattr(scan, "PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(scan, "OVERLAPPING", 400)
    config = load_config(planted)
    long = " ".join(WORDS[100:300])
    for at in range(600, 1400, 50):
        text = f"{long[:at]} {HELDOUT} {long[at:]}"
        write_lines(Path(planted).parent / "zh.jsonl", ["first", text, "last"])
        zh, _ = scan_corpora(config.data, make_index(config, ""), sample=True)
        assert [(hit.document, hit.source) for hit in zh.overlaps] == [(1, "held-out zh")]
        assert zh.overlaps[0].grams >= len(HELDOUT.split()) - 12
        assert len(zh.sample.entries) == 3


def test_repeated_chats_are_left_out_next_to_documents(planted, tmp_path):
    config = load_config(planted)
    chats = [{"prompt": f"p{number % 5}", "completion": "yes"} for number in range(7)]
    (tmp_path / "zh.jsonl").write_text("\n".join(map(json.dumps, chats)))
    data = replace(
        config.data,
        sequence_length=127,
        almr=0.5,
        original=(replace(config.data.original[0], kind="documents"),),
        chat=ChatConfig(),
    )
    assert config.model
    model = replace(config.model, context_length=128)
    select_dropped(replace(config, data=data, model=model), ["duplicate"], "")
    rows = prepare(data, 1).rows
    assert (rows["zh"].documents, rows["zh"].dropped_documents) == (5, {"duplicate": 2})
    assert rows["en"].documents > 0


def test_chats_are_equal_only_if_training_reads_the_same(planted, tmp_path):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    rated = {"prompt": "a", "completion": "b"}
    records = [
        {"messages": turns},
        {"system": "a", "prompt": "b", "completion": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "c", "rejected": "b"},
        rated,
        rated | {"label": True},
        rated | {"label": False},
        {"messages": [turns[0], turns[1] | {"weight": 0}, turns[2], turns[1]]},
        {"messages": [*turns, turns[1]]},
        # Equal to earlier records, two of them in another format.
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        rated | {"label": False, "note": "x"},
        {"messages": turns[:2], "label": True},
    ]
    (tmp_path / "zh.jsonl").write_text("\n".join(map(json.dumps, records)))
    write_lines(tmp_path / "en.jsonl", ["a\nb\nc", "a\nb"])
    config = load_config(planted)
    corpora = config.data.additional + config.data.original
    zh, en = (
        replace(corpus, kind=kind)
        for corpus, kind in zip(corpora, ("conversations", "documents"), strict=True)
    )
    data = replace(config.data, additional=(zh,), original=(en,), chat=ChatConfig())
    select_dropped(replace(config, data=data), ["duplicate"], "")
    lists = read_dropped(data.prepared)
    assert left_out(lists, "zh") == {0: dict.fromkeys((10, 11, 12), "duplicate")}
    assert left_out(lists, "en") == {}
