"""Prepared corpora are reused; a changed config or changed source files are an error."""

import base64
from dataclasses import replace
import os
from pathlib import Path

import pytest

from llama_cpt.data.prepare import corpora, shards
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.rows import TOKEN_BITS
from llama_cpt.data.sources import files as sources
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from tests.data.corpus_files import prepared_files, rows_by_shard, write_lines


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
    before = prepared_files(config)
    with pytest.raises(UserError, match=f"prepared/zh was .*{message}.* delete .*prepared/zh"):
        prepare(change(config, tmp_path))
    assert prepared_files(config) == before


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


def test_partial_corpus_of_other_sources_is_discarded(config, small_shards, monkeypatch, tmp_path):
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
        .decode((rows_by_shard(prepared, "zh")[0] & TOKEN_BITS).ravel().tolist())
        .encode()
    )
    assert not list(Path(config.prepared).rglob("partial"))


def test_prepared_rows_do_not_need_their_sources(config, tmp_path, caplog):
    first = prepare(config)
    for path in tmp_path.glob("*.jsonl*"):
        path.unlink()
    assert prepare(config) == first
    assert "no file matches" in caplog.text
    other = replace(config.original[0], source=str(tmp_path / "mistyped.jsonl"))
    with pytest.raises(UserError, match="no file matches.*were prepared from different files"):
        prepare(replace(config, original=(other,)))
