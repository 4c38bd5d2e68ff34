"""Fixtures for tests that prepare corpora of documents."""

import pytest

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.data.prepare import corpora
from tests.byte_tokenizer import write_byte_tokenizer
from tests.data.corpus_files import LENGTH, SMALL_SHARDS, texts, write_lines


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """Path of a byte vocabulary with two merged tokens."""
    return write_byte_tokenizer(tmp_path_factory.mktemp("vocabulary"), b"th", b"the")


@pytest.fixture
def small_shards(monkeypatch):
    """Replace the layout of corpora by SMALL_SHARDS, which gives many shards."""
    monkeypatch.setattr(corpora, "make_layout", lambda *_: SMALL_SHARDS)


@pytest.fixture
def config(tmp_path, vocabulary):
    """A config with two source files of Chinese, one of English and one held-out file."""
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
