"""Windows of documents are batched in short rows, and every token is scored once."""

import jax
import numpy as np
import pytest

from llama_cpt.config.schema import CorpusConfig, DataConfig, MeshConfig
from llama_cpt.evaluation import rolling
from llama_cpt.evaluation.named_models import MAX_WINDOW, ModelSpec, scoring_window
from llama_cpt.evaluation.rolling import make_batches, rolling_loglikelihood, row_length
from llama_cpt.generation.decoder import Decoder
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training.heldout import rolling_windows
from tests.tiny_run import tiny_model


def windows_of(sizes, window):
    documents = [np.arange(size + 2, dtype=np.int32) for size in sizes]
    return [
        one
        for number, document in enumerate(documents)
        for one in rolling_windows(document, window, corpus=number)
    ]


def test_row_lengths_are_powers_of_two_up_to_the_window():
    lengths = [row_length(tokens, 1000) for tokens in (1, 128, 129, 512, 513, 1000)]
    assert lengths == [128, 128, 256, 512, 1024, 1024]
    assert row_length(900, 900) == 1024 and row_length(500, 640) == 512
    assert row_length(600, 640) == 640


def test_short_documents_do_not_pay_for_long_rows():
    batches = make_batches(windows_of([100] * 64, 4096), 4096, 1024, 2)
    assert [(len(rows), length, size) for rows, length, size in batches] == [(16, 128, 16)] * 4


def test_every_window_is_in_one_batch_and_few_shapes_are_compiled():
    sizes = [*range(1, 700, 7), 5000, 1500]
    windows = windows_of(sizes, 2048)
    batches = make_batches(windows, 2048, 4096, 1)
    found = [id(one) for rows, _, _ in batches for row in rows for one in row]
    assert sorted(found) == sorted(map(id, windows))
    for rows, length, size in batches:
        assert len(rows) <= size and size * length <= 4096
        assert all(sum(len(one.tokens) for one in row) <= length for row in rows)
    padded = sum(size * length for _, length, size in batches)
    assert padded < 1.1 * sum(len(one.tokens) for one in windows)
    lengths = [length for _, length, _ in batches]
    assert lengths == sorted(lengths, reverse=True)
    assert len({(length, size) for _, length, size in batches}) <= 5


def test_all_tokens_of_all_documents_are_scored_and_reported(monkeypatch):
    def ones(decoder, batch, *, chunk_tokens):
        return np.ones(batch.tokens.shape, np.float32)

    monkeypatch.setattr(rolling, "score_segments", ones)
    sizes, reported = [5, 0, 300, 90], []
    documents = [np.arange(size + 1, dtype=np.int32) for size in sizes]
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    nats = rolling_loglikelihood(
        object.__new__(Decoder),
        documents,
        mesh=mesh,
        window=64,
        batch_tokens=256,
        on_scored=reported.append,
    )
    assert sorted(nats) == [(number, float(size)) for number, size in enumerate(sizes)]
    assert sum(reported) == sum(sizes) and len(reported) > 1


@pytest.mark.parametrize(
    ("runs", "contexts", "heldout_of", "window"),
    [
        ((None, None), (8192, 131072), None, MAX_WINDOW),
        ((None, None), (8192, 512), None, 512),
        ((None, 1024), (8192, 8192), None, 1024),
        ((2048, 256), (8192, 8192), None, 256),
        ((None, 1024), (512, 8192), None, 512),
        ((None, None), (8192, 8192), 256, 256),
        ((None, 256), (8192, 8192), 1024, 256),
    ],
)
def test_window_is_the_same_for_all_models(runs, contexts, heldout_of, window):
    specs = {
        str(number): ModelSpec("", tiny_model(8, context_length=context), None, run)  # pyright: ignore[reportArgumentType]
        for number, (run, context) in enumerate(zip(runs, contexts, strict=True))
    }
    data = None
    if heldout_of:
        data = DataConfig("tokenizer", "rows", heldout_of, 0, original=(CorpusConfig("en", "a"),))
    assert scoring_window(specs, data) == window
