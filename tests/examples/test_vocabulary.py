"""Tests of the vocabulary: lossless, deterministic, with the control symbols of Llama 3."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from examples.bilingual_world.documents import write_world
from examples.bilingual_world.vocabulary import train_vocabulary
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 0, documents=400, heldout=100, chat_repeats=1)
    return [folder / "en.train.jsonl", folder / "zh.train.jsonl"]


@pytest.fixture(scope="module")
def tokenizer(sources):
    path = sources[0].parent / "tokenizer.model"
    train_vocabulary(sources, path, 3000)
    return load_tokenizer(str(path))


def test_llama3s_symbols_and_size(tokenizer):
    assert (tokenizer.kind, tokenizer.vocab_size) == ("sentencepiece", 3000)
    assert tokenizer.special_id("<|begin_of_text|>") == tokenizer.bos_id
    assert tokenizer.special_id("<|end_of_text|>") == tokenizer.eos_id
    names = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    ids = {tokenizer.special_id(name) for name in names}
    assert None not in ids and len(ids | {tokenizer.bos_id, tokenizer.eos_id}) == 5
    assert not ids & set(tokenizer.encode("a <|eot_id|> b"))


def test_lossless_on_the_worlds_text(tokenizer, sources):
    for source in [*sources, *sources[0].parent.glob("*.heldout.jsonl")]:
        texts = [json.loads(line)["text"] for line in source.read_text("utf-8").splitlines()]
        ids = tokenizer.encode_batch(texts)
        assert [tokenizer.decode(one) for one in ids] == texts
        # There are fewer tokens than characters because words and common phrases have pieces.
        assert sum(map(len, ids)) < 0.9 * sum(map(len, texts))


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_lossless_on_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_same_bytes_every_time(tokenizer, sources, tmp_path):
    train_vocabulary(sources, tmp_path / "again.model", 3000)
    assert load_tokenizer(str(tmp_path / "again.model")).fingerprint == tokenizer.fingerprint


def test_too_little_text_for_the_vocabulary(tmp_path):
    (tmp_path / "small.jsonl").write_text('{"text": "hello"}\n')
    with pytest.raises(UserError, match="cannot train a vocabulary of 3000 pieces"):
        train_vocabulary([tmp_path / "small.jsonl"], tmp_path / "x.model", 3000)
    assert not list(tmp_path.glob("x.model*"))
