"""Rows mark the first token of each document by its position, for tokenizers of all kinds."""

from dataclasses import replace
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from llama_cpt.config.schema import CorpusConfig, DataConfig
from llama_cpt.data.loader import row_batch
from llama_cpt.data.prepare.corpora import prepare
from llama_cpt.data.rows import (
    DOCUMENT_START,
    MANIFEST,
    TOKEN_BITS,
    HeldoutDocuments,
    TokenRows,
    record_writer,
)
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from tests.data.corpus_files import write_lines
from tests.data.json_tokenizers import BOS_EOS, CHATML, write_tokenizer

LENGTH = 15
TEXTS = [f"document {n} " + "x" * (7 * n % 23) for n in range(40)] + ["a"]
END = "<|end_of_text|>"
SAME = {"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"}
EQUAL = {"config": SAME, "prefix": END}


def make_config(folder: Path) -> DataConfig:
    write_lines(folder / "en.jsonl", TEXTS)
    corpus = CorpusConfig("en", str(folder / "en.jsonl"))
    return DataConfig(
        tokenizer=str(folder),
        prepared=str(folder / "rows"),
        sequence_length=LENGTH,
        almr=0.0,
        original=(corpus,),
        heldout=(corpus,),
    )


@pytest.mark.parametrize(
    ("settings", "names", "around"),
    [
        ({"config": SAME, "prefix": "<|end_of_text|>"}, None, ((257,), 257)),
        ({"prefix": ""}, None, ((), 257)),
        ({}, None, ((256,), 257)),
        ({}, ("", "<|eot_id|>"), ((), 260)),
        ({"prefix": ""}, ("<|im_start|>", "<|im_end|>"), ((261,), 262)),
    ],
)
def test_each_document_is_a_segment_and_its_end_is_learned(settings, names, around, tmp_path):
    write_tokenizer(tmp_path, **settings)
    config = replace(make_config(tmp_path), document_tokens=names)
    prepared, tokenizer = prepare(config), load_tokenizer(str(tmp_path))
    begin, end = around
    documents = [[*begin, *tokenizer.encode(text), end] for text in TEXTS]
    rows = TokenRows(prepared.folder("en"))
    found = rows.read(np.arange(len(rows)))
    batch = row_batch(found, np.zeros(len(rows), np.int32), np.arange(len(rows)))
    starts, position = set(), 0
    for document in documents:
        starts.add(position)
        position += len(document)
    flat = [token for document in documents for token in document]
    assert (found & TOKEN_BITS).ravel().tolist() == flat[: found.size]
    segment, place = 0, 0
    for number, token in enumerate(found.ravel().tolist()):
        row, column = divmod(number, LENGTH + 1)
        assert (token >= DOCUMENT_START) == (number in starts)
        if column < LENGTH:
            begins = column == 0 or number in starts
            segment = (0 if column == 0 else segment) + begins
            place = 0 if begins else place + 1
            assert batch.segment_ids[row, column] == segment
            assert batch.positions[row, column] == place
            assert batch.loss_mask[row, column] == (number + 1 not in starts)
    learned = batch.targets[batch.loss_mask > 0]
    assert np.sum(learned == end) == sum(
        flat[n] == end and n % (LENGTH + 1) > 0 and n not in starts for n in range(found.size)
    )
    heldout = HeldoutDocuments(prepared.heldout_folder("en")).read(np.arange(len(TEXTS)))
    first = begin or (end,)
    assert [tokens.tolist() for tokens, _ in heldout] == [
        [*first, *tokenizer.encode(text), end] for text in TEXTS
    ]


def as_version_1(prepared) -> None:
    """Rewrite the prepared rows and manifests as version 1 wrote them."""
    tokenizer = load_tokenizer(prepared.config.tokenizer)
    for folder in (prepared.folder("en"), prepared.heldout_folder("en")):
        file = Path(folder) / MANIFEST
        values = json.loads(file.read_text())
        for name in ("version", "former_tokenizer", "document_tokens"):
            del values[name]
        file.write_text(json.dumps(values | {"tokenizer": tokenizer.content_digest}))
    rows = TokenRows(prepared.folder("en"))
    plain = rows.read(np.arange(len(rows))) & TOKEN_BITS
    ((name, _),) = prepared.rows["en"].shards
    with record_writer(str(Path(prepared.folder("en")) / name)) as writer:
        for row in plain:
            writer.write(row.tobytes())


def test_rows_of_version_1_are_accepted_if_they_hold_the_same_tokens(tmp_path):
    write_tokenizer(tmp_path)
    config = make_config(tmp_path)
    first = prepare(config)
    rows = TokenRows(first.folder("en"))
    expected = rows.read(np.arange(len(rows)))
    as_version_1(first)
    accepted = prepare(config)
    rows = TokenRows(accepted.folder("en"))
    np.testing.assert_array_equal(rows.read(np.arange(len(rows))), expected)
    tokenizer = load_tokenizer(config.tokenizer)
    assert accepted.rows["en"].tokenizer == tokenizer.fingerprint
    # A checkpoint of a run on these rows contains the former fingerprint.
    assert accepted.rows["en"].fingerprint.startswith(tokenizer.content_digest)
    assert prepare(config) == accepted


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        # The post-processor is part of the vocabulary file; the config changes without it.
        ({}, {"config": BOS_EOS | {"eos_token": "<|im_end|>"}}, "different tokens before and"),
        (EQUAL, EQUAL, "different tokens before and"),
        ({"added": ("<think>",)}, {"added": ("<think>",)}, "tokenizer's added tokens"),
        ({}, {"prefix": ""}, "tokenizer was"),
    ],
)
def test_other_rows_of_version_1_are_an_error(before, after, message, tmp_path):
    write_tokenizer(tmp_path, **before)
    config = make_config(tmp_path)
    as_version_1(prepare(config))
    write_tokenizer(tmp_path, **after)
    with pytest.raises(UserError, match=f"{message}.*delete"):
        prepare(config)


def test_changed_special_tokens_are_an_error(tmp_path):
    write_tokenizer(tmp_path)
    config = make_config(tmp_path)
    prepare(config)
    write_tokenizer(tmp_path, config=BOS_EOS | {"eos_token": "<|im_end|>"})
    with pytest.raises(UserError, match=r"tokenizer was .*document_tokens was"):
        prepare(config)


@pytest.mark.parametrize(
    ("names", "tokens", "warned"),
    [
        ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, None, True),
        ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, ("", "<|end_of_text|>"), False),
        (BOS_EOS, None, False),
    ],
)
def test_turn_markers_around_documents_cause_a_warning(names, tokens, warned, tmp_path, caplog):
    write_tokenizer(tmp_path, config=names | {"chat_template": CHATML}, prefix="")
    with caplog.at_level(logging.WARNING, "llama_cpt"):
        prepare(replace(make_config(tmp_path), document_tokens=tokens))
    message = "begin or end with <|im_end|>, which mark turns in the chat template"
    assert (message in caplog.text) == warned
    assert ("such as ('', '<|end_of_text|>')" in caplog.text) == warned
