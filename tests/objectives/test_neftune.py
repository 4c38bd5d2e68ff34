"""The noise of NEFTune has the scale in the paper, depends on seed and row, and is optional."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.config.schema import MeshConfig, NextTokenConfig, PreferenceConfig
from llama_cpt.data.batch import TokenBatch
from llama_cpt.model.llama import Llama
from llama_cpt.objectives.next_token import embedding_noise, make_objective, segment_lengths
from llama_cpt.parallel.mesh import make_mesh, partition_spec
from tests.objectives.preferences import VOCAB, pack, random_pairs
from tests.training.tiny_step import MODEL

ALPHA, EMBED, LENGTH = 5.0, 32, 40
CONFIG = replace(MODEL, vocab_size=VOCAB, context_length=LENGTH)


def batch() -> TokenBatch:
    """Return four rows, each with three conversations and padding."""
    pairs = random_pairs(12)
    rows = [[(p.prompt, p.chosen) for p in pairs[3 * r : 3 * r + 3]] for r in range(4)]
    return jax.tree.map(jnp.asarray, pack(rows, LENGTH))


def noise(rows: TokenBatch, seed: int = 0) -> np.ndarray:
    return np.asarray(embedding_noise(rows, EMBED, alpha=ALPHA, seed=seed))


def test_segment_lengths():
    segments = np.array([[1, 1, 2, 2, 2, 3, 0, 0]], np.int32)
    positions = np.array([[0, 1, 0, 1, 2, 0, 0, 1]], np.int32)
    found = segment_lengths(jnp.asarray(positions), jnp.asarray(segments))
    np.testing.assert_array_equal(found, [[2, 2, 3, 3, 3, 1, 2, 2]])


def test_noise_has_the_scale_of_the_paper():
    rows = batch()
    drawn = noise(rows)
    for r, segments in enumerate(np.asarray(rows.segment_ids)):
        for segment in (1, 2, 3):
            here = drawn[r, segments == segment]
            bound = ALPHA / np.sqrt(here.size)
            assert 0.9 * bound < np.abs(here).max() < bound
            # The standard deviation of a uniform variable, whose mean is 0.
            np.testing.assert_allclose(here.std(), bound / np.sqrt(3), rtol=0.2)
            assert abs(here.mean()) < 4 * here.std() / np.sqrt(here.size)


def test_noise_depends_on_seed_and_row_only():
    rows = batch()
    whole = noise(rows)
    assert (noise(rows, seed=1) != whole).mean() > 0.99
    # The first batch has the same rows at different positions. The others have different row
    # numbers.
    np.testing.assert_array_equal(noise(jax.tree.map(lambda x: x[2:], rows)), whole[2:])
    for word in (0, 1):
        other = replace(rows, row=rows.row.at[:, word].add(7))
        assert (noise(other) != whole).mean() > 0.99
    mesh = make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        placed = jax.device_put(rows, jax.NamedSharding(mesh, partition_spec("batch", None)))
        sharded = jax.jit(lambda rows: embedding_noise(rows, EMBED, alpha=ALPHA, seed=0))(placed)
    np.testing.assert_allclose(sharded, whole, rtol=1e-6)


def loss_of(alpha: float, seed: int, what: str = "value"):
    objective = make_objective(
        NextTokenConfig(neftune_alpha=alpha), num_corpora=2, loss_chunk_tokens=24, seed=seed
    )
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    model = jax.jit(lambda: Llama(CONFIG, jax.random.key(0)))()
    with jax.set_mesh(mesh):
        step = jax.jit(lambda model, rows: objective(model, rows)[0])
        return step.lower(model, batch()).as_text() if what == "text" else step(model, batch())


@pytest.mark.slow
def test_loss_depends_on_alpha_and_seed():
    clean, noisy, other = (float(loss_of(*args)) for args in ((0.0, 0), (ALPHA, 0), (ALPHA, 1)))
    assert len({clean, noisy, other}) == 3
    assert float(loss_of(1e-6, 0)) == pytest.approx(clean, rel=1e-5)
    assert abs(noisy / clean - 1) > 1e-5


def test_step_without_noise_does_not_depend_on_the_seed():
    plain = loss_of(0.0, 0, "text")
    assert plain == loss_of(0.0, 123, "text") and "threefry" not in plain
    assert "threefry" in loss_of(ALPHA, 0, "text")


def test_preference_objective_does_not_depend_on_the_seed():
    objectives = [
        make_objective(PreferenceConfig(loss="sigmoid"), num_corpora=1, loss_chunk_tokens=8, seed=s)
        for s in (0, 1)
    ]
    assert objectives[0].keywords == objectives[1].keywords
