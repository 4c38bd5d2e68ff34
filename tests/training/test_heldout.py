"""The held-out loss equals a computation with one forward pass per token."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.config.model import ModelConfig
from llama_cpt.model.llama import Llama
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.heldout import (
    evaluate_heldout,
    evenly_spaced,
    pack_windows,
    rolling_windows,
    window_batch,
)

BOS, EOS = 1, 2
LENGTH = 16
TINY = ModelConfig(
    vocab_size=260,
    embed_dim=32,
    mlp_dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=10000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=True,
    context_length=128,
)


class InMemory:
    """Documents with one token per UTF-8 byte; token ids start above the special ids."""

    def __init__(self, *texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def read(self, indices):
        return [(self.tokens(self.texts[i].encode()), len(self.texts[i].encode())) for i in indices]

    def tokens(self, data):
        return np.array([BOS, *(byte + 4 for byte in data), EOS], np.uint32)


CORPORA = {
    "en": InMemory("A long document, of more than three windows in all.", "a", "", "Short. " * 2),
    "zh": InMemory("敏捷的棕色狐狸", "é🦊", "x" * LENGTH, "y" * (2 * LENGTH), "z" * (LENGTH + 1)),
}


@pytest.fixture(scope="module")
def model():
    """A tiny Llama whose logits are far from uniform."""
    return jax.tree.map(lambda x: 5 * x, Llama(TINY, jax.random.key(0)))


@pytest.fixture(scope="module")
def forward(model):
    return jax.jit(lambda *inputs: model(*inputs))


@pytest.fixture(scope="module")
def score(forward):
    def nll(batch):
        logits = forward(batch.tokens, batch.positions, batch.segment_ids)
        chosen = jnp.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
        return jax.nn.logsumexp(logits, -1) - chosen

    return nll


def evaluate(score, corpora=CORPORA, documents=99, batch_size=3):
    return evaluate_heldout(
        score,
        corpora,
        sequence_length=LENGTH,
        batch_size=batch_size,
        documents=documents,
    )


def document_nll(forward, tokens):
    """Return a document's summed NLL, with a separate forward pass per token."""
    total = 0.0
    count = len(tokens) - 2
    for i in range(1, count + 1):
        window = (i - 1) // LENGTH
        end = min((window + 1) * LENGTH, count)
        context = np.asarray(tokens[max(end - LENGTH, 0) : i], np.int32)
        padded = np.zeros((1, LENGTH), np.int32)
        padded[0, : len(context)] = context
        segments = (np.arange(LENGTH)[None] < len(context)).astype(np.int32)
        logits = np.asarray(forward(padded, np.arange(LENGTH, dtype=np.int32)[None], segments))
        row = logits[0, len(context) - 1].astype(np.float64)
        total -= row[tokens[i]] - np.log(np.exp(row - row.max()).sum()) - row.max()
    return total


def test_loss_equals_one_token_at_a_time(score, forward):
    results = evaluate(score)
    for name, held in CORPORA.items():
        nll = sum(document_nll(forward, tokens) for tokens, _ in held.read(range(len(held))))
        byte_count = sum(len(text.encode()) for text in held.texts)
        result = results[name]
        assert (result.tokens, result.bytes) == (byte_count, byte_count)
        assert result.documents == len(held)
        assert result.loss == pytest.approx(nll / byte_count, rel=1e-6)
        assert result.bits_per_byte == pytest.approx(nll / math.log(2) / byte_count, rel=1e-6)


def test_bits_per_byte_divide_by_source_bytes():
    """The divisor does not change if the tokenizer encodes each document as one token."""

    class OneToken(InMemory):
        def tokens(self, data):
            return np.array([BOS, 7, EOS], np.uint32)

    (result,) = evaluate(lambda b: np.ones(b.tokens.shape), {"zh": OneToken("狐狸", "é")}).values()
    assert (result.tokens, result.bytes, result.loss) == (2, 8, 1.0)
    assert result.bits_per_byte == pytest.approx(2 / math.log(2) / 8)


def test_batch_size_does_not_change_the_loss(score):
    shapes = set()

    def record_shape(batch):
        shapes.add(batch.tokens.shape)
        # Losses of padding and context must be ignored, even if they are NaN.
        return np.where(batch.loss_mask > 0, score(batch), np.nan)

    one, many = evaluate(record_shape, batch_size=1), evaluate(record_shape, batch_size=7)
    assert shapes == {(1, LENGTH), (7, LENGTH)}
    for name in CORPORA:
        assert one[name].loss == pytest.approx(many[name].loss, rel=1e-6)


def test_windows_equal_those_of_the_harness():
    """The expected windows come from lm-evaluation-harness's test of range(34) with length 10."""
    document = np.array([99, *range(34), 98], np.uint32)
    windows = list(rolling_windows(document, 10, corpus=0))
    assert [(w.tokens.tolist(), w.targets[-w.scored :].tolist()) for w in windows] == [
        ([99, *range(9)], [*range(10)]),
        ([*range(9, 19)], [*range(10, 20)]),
        ([*range(19, 29)], [*range(20, 30)]),
        ([*range(23, 33)], [*range(30, 34)]),
    ]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 9))
@settings(deadline=None)
def test_every_token_is_scored_once_in_its_own_document(sizes, length):
    documents = [
        np.array([BOS, *range(100 * k + 10, 100 * k + 10 + size), EOS], np.uint32)
        for k, size in enumerate(sizes)
    ]
    windows = [w for d in documents for w in rolling_windows(d, length, corpus=0)]
    rows = pack_windows(windows, length)
    batch = window_batch(rows, len(rows), length)
    scored = batch.targets[batch.loss_mask > 0]
    assert sorted(scored) == sorted(int(token) for d in documents for token in d[1:-1])
    for row in range(len(rows)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            inside = batch.segment_ids[row] == segment
            tokens, targets = batch.tokens[row][inside], batch.targets[row][inside]
            np.testing.assert_array_equal(tokens[1:], targets[:-1])
            np.testing.assert_array_equal(batch.positions[row][inside], np.arange(len(tokens)))
            assert len({target // 100 for target in targets}) == 1
    assert not batch.tokens[batch.segment_ids == 0].any()


def test_documents_are_evenly_spaced(score):
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, 256) == [0, 1, 2]
    assert evaluate(score, documents=2)["en"].documents == 2


def test_corpus_without_text_is_rejected(score):
    with pytest.raises(UserError, match="'none': the 2 chosen documents hold no text"):
        evaluate(score, {"none": InMemory("", "")})
