"""The SFT loss on assistant tokens equals TRL's, with and without packing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.config.schema import MeshConfig, NextTokenConfig
from llama_cpt.objectives.cross_entropy import token_nll
from llama_cpt.objectives.next_token import make_objective
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.weights.hf_weights import load_hf
from tests.objectives.preferences import draw_tokens, pack

torch = pytest.importorskip("torch")
pytest.importorskip("trl")
from tests.objectives import trl_trainers as trl  # noqa: E402
from tests.weights.hf_models import random_llama  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

LENGTH, CHUNK = 48, 24


def conversations() -> list[tuple[list[int], list[int]]]:
    """Return (prompt, answer) pairs of token ids with several lengths."""
    draw = np.random.default_rng(3)
    return [(draw_tokens(draw, 1, 9), draw_tokens(draw, 1, 9)) for _ in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    random_llama().save_pretrained(folder)
    return load_hf(str(folder))


def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def loss_of(model, rows) -> float:
    objective = make_objective(NextTokenConfig(), num_corpora=2, loss_chunk_tokens=CHUNK, seed=0)
    with jax.set_mesh(one_device()):
        loss, weight, _ = jax.jit(objective)(model, jax.tree.map(jnp.asarray, rows))
    return float(loss / weight)


def nll_of(model, rows) -> np.ndarray:
    def score(model, rows):
        hidden = model.hidden(rows.tokens, rows.positions, rows.segment_ids)
        return token_nll(hidden, model.head, rows.targets, CHUNK)

    with jax.set_mesh(one_device()):
        return np.asarray(jax.jit(score)(model, jax.tree.map(jnp.asarray, rows)))


PACKED = pack([conversations()[:3], conversations()[3:]], LENGTH)
ALONE = pack([[one] for one in conversations()], LENGTH)


def test_packing_leaves_the_nll_of_a_token_unchanged(model):
    packed, alone = nll_of(model, PACKED), nll_of(model, ALONE)
    for i in range(6):
        here = PACKED.segment_ids[i // 3] == i % 3 + 1
        want = alone[i, : here.sum()]
        np.testing.assert_allclose(packed[i // 3, here], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_loss_equals_trl(packing, model, tmp_path):
    want = trl.sft_loss(random_llama(), conversations(), tmp_path, packing=packing)
    for rows in (PACKED, ALONE):
        np.testing.assert_allclose(loss_of(model, rows), want, rtol=1e-4)
