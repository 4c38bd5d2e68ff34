"""Reference log-probabilities are correct, and are computed once per model."""

from dataclasses import replace
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.checkpoint.run_folder import save_weights
from llama_cpt.config.schema import MeshConfig
from llama_cpt.data.batch import PreferenceBatch
from llama_cpt.model.llama import Llama
from llama_cpt.parallel.global_arrays import from_replicated
from llama_cpt.parallel.mesh import make_mesh, shardings
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.reference import (
    AnswerBatch,
    ReferenceIdentity,
    make_scorer,
    model_identity,
    reference_logprobs,
    row_sharding,
    scorer_program,
)
from tests.objectives.preferences import VOCAB, preference_batch, random_pairs
from tests.training.tiny_step import MODEL

LENGTH, ROWS = 48, 10
CONFIG = replace(MODEL, vocab_size=VOCAB, context_length=LENGTH)
IDENTITY = ReferenceIdentity(model="m", tokenizer="t", dtype="float32")
PAIRS = random_pairs(2 * ROWS)


class Rows:
    """Rows in memory with two preference pairs per row."""

    def __len__(self) -> int:
        return ROWS

    def batch(self, indices: np.ndarray) -> PreferenceBatch:
        return preference_batch([PAIRS[2 * i : 2 * i + 2] for i in indices], LENGTH)


class Counted:
    """A ``make_score`` that counts its calls and the calls of the function that it returns."""

    def __init__(self, mesh: jax.sharding.Mesh, seed: int = 0) -> None:
        self.mesh, self.seed, self.made, self.scored = mesh, seed, 0, 0

    def __call__(self):
        self.made += 1
        create = lambda: Llama(CONFIG, jax.random.key(self.seed))
        with jax.set_mesh(self.mesh):
            placed = shardings(jax.eval_shape(create), self.mesh)
            model = jax.jit(create, out_shardings=placed)()
        score = make_scorer(model, self.mesh, loss_chunk_tokens=24)

        def counted(batch: AnswerBatch) -> np.ndarray:
            self.scored += 1
            return score(batch)

        return counted


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])


def columns(folder, make_score, identity=IDENTITY, fingerprint="f") -> np.ndarray:
    found = reference_logprobs(
        {"zh": (Rows(), fingerprint)},
        make_score,
        folder=str(folder),
        identity=identity,
        batch_size=4,
    )
    return found["zh"]


@pytest.fixture(scope="module")
def cached(mesh, tmp_path_factory):
    """A cache folder and the array that it contains."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, columns(folder, Counted(mesh))


@jax.jit
def logprobs_of(model: Llama, tokens: jax.Array) -> jax.Array:
    logits = model(tokens, jnp.arange(16)[None], jnp.ones_like(tokens))
    return jax.nn.log_softmax(logits[0])


def test_equals_each_answer_scored_alone(cached):
    model = jax.jit(lambda: Llama(CONFIG, jax.random.key(0)))()
    for row, have in enumerate(cached[1]):
        answers = [
            a for p in PAIRS[2 * row : 2 * row + 2] for a in ((p, p.chosen), (p, p.rejected))
        ]
        for (pair, answer), value in zip(answers, have, strict=True):
            tokens = np.array(pair.prompt + answer)
            padded = np.pad(tokens, (0, 16 - tokens.size))[None]
            logprobs = np.asarray(logprobs_of(model, padded))
            each = logprobs[np.arange(tokens.size - 1), tokens[1:]]
            np.testing.assert_allclose(value, each[-len(answer) :].sum(), rtol=1e-5)


def test_every_device_holds_all_log_probabilities(mesh):
    """Otherwise a process of several could not read those of the other processes."""
    batch = from_replicated(Rows().batch(np.arange(4)), row_sharding(mesh))
    with jax.set_mesh(mesh):
        model = jax.jit(lambda: Llama(CONFIG, jax.random.key(0)))()
        logprobs = scorer_program(24)(model, batch)
    assert len(logprobs.sharding.device_set) == 4 and logprobs.is_fully_replicated


def test_second_call_reads_the_cache(cached, mesh):
    folder, array = cached
    again = Counted(mesh)
    np.testing.assert_array_equal(columns(folder, again), array)
    assert again.made == 0
    assert array.dtype == np.float32 and array.shape == (ROWS, 4)


@pytest.mark.parametrize("field", ["model", "tokenizer", "dtype", "corpus"])
def test_cache_depends_on_model_tokenizer_dtype_and_corpus(cached, mesh, field):
    folder, array = cached
    other = Counted(mesh, seed=1)
    identity = IDENTITY if field == "corpus" else replace(IDENTITY, **{field: "other"})
    found = columns(folder, other, identity, "other" if field == "corpus" else "f")
    assert other.made == 1 and other.scored == 3 and not np.allclose(found, array)


@pytest.mark.parametrize(
    "damage", ["cut", "long", "flipped", "no_digest", "bad_digest", "another_shape"]
)
def test_damaged_cache_is_recomputed(cached, mesh, tmp_path, damage, caplog):
    array = columns(tmp_path, Counted(mesh))
    (file,) = tmp_path.glob("*/zh.npy")
    content, digest = bytearray(file.read_bytes()), file.with_name("zh.npy.json")
    content[-3] ^= 1
    if damage == "another_shape":
        other = Counted(mesh)
        rows = Rows()
        rows.batch = lambda indices: preference_batch([PAIRS[:1] for _ in indices], LENGTH)
        reference_logprobs(
            {"zh": (rows, "f")}, other, folder=str(tmp_path), identity=IDENTITY, batch_size=4
        )
    else:
        damaged = {"cut": (file, bytes(content[:-8])), "flipped": (file, bytes(content))}
        damaged["long"] = (file, bytes(content) + bytes(1 << 17))
        damaged["bad_digest"] = (digest, b"{")
        path, what = damaged.get(damage, (digest, None))
        path.unlink() if what is None else path.write_bytes(what)
    again = Counted(mesh)
    np.testing.assert_array_equal(columns(tmp_path, again), array)
    assert again.made == 1 and ("recomputing it" in caplog.text) == (damage != "no_digest")
    assert ("zh.npy: has more than " in caplog.text) == (damage == "long")
    assert columns(tmp_path, again) is not None and again.made == 1


def test_rejects_values_that_are_not_finite(tmp_path):
    def make_score():
        return lambda batch: np.where(np.arange(4)[None] == 2, np.nan, np.zeros((4, 1)))

    with pytest.raises(UserError, match="'zh'.* row 0 .*not finite"):
        columns(tmp_path, make_score)
    assert not list(tmp_path.iterdir())


def test_model_identity_differs_between_weights(tmp_path):
    about = {"config": {"model": {}}}
    for name, seed in (("a", 0), ("b", 1)):
        save_weights(str(tmp_path / name), Llama(CONFIG, jax.random.key(seed)), about)
        hf = tmp_path / f"hf_{name}"
        hf.mkdir()
        (hf / "model.safetensors").write_bytes(json.dumps(seed).encode())
    sources = [str(tmp_path / name) for name in ("a", "b", "hf_a", "hf_b")]
    found = [model_identity(source, CONFIG, 0) for source in sources]
    found += [model_identity("", CONFIG, seed) for seed in (0, 1)]
    found.append(model_identity(sources[0], replace(CONFIG, rope_theta=5e5), 0))
    assert len(set(found)) == 7
    assert found[:4] == [model_identity(source, CONFIG, 1) for source in sources]
