"""Losses, rewards and gradients on a tiny Llama equal TRL's, for several packings and meshes."""

from dataclasses import replace
from functools import partial
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llama_cpt.config.schema import MeshConfig, PreferenceConfig
from llama_cpt.data.batch import PreferenceBatch, TokenBatch, UnpairedBatch
from llama_cpt.model.llama import Llama
from llama_cpt.objectives.next_token import make_objective
from llama_cpt.objectives.preference import segment_logprobs
from llama_cpt.parallel.mesh import make_mesh, partition_spec, shardings
from llama_cpt.training.report import mean_metrics
from llama_cpt.training.train_step import TrainState, _accumulate
from llama_cpt.weights.hf_names import BY_OURS, parameters_by_path
from llama_cpt.weights.hf_weights import load_hf
from tests.objectives.preferences import (
    Pair,
    preference_batch,
    random_judged,
    random_pairs,
    unpaired_batch,
)

pytest.importorskip("trl")
from tests.objectives import trl_trainers as trl  # noqa: E402
from tests.weights.hf_models import random_llama  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

LENGTH, CHUNK = 64, 24
PAIRS = random_pairs(7)
# Rows of two and three pairs; one row is empty.
CUTS = [(0, 2), (2, 5), (5, 5), (5, 7)]


def in_rows(things: list) -> list[list]:
    return [things[a:b] for a, b in CUTS]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The policy and the reference model, each in JAX (``ours``) and in PyTorch (``theirs``)."""
    found = {}
    for name, seed in (("policy", 0), ("reference", 1)):
        folder = tmp_path_factory.mktemp(name)
        theirs = random_llama(seed)
        theirs.save_pretrained(folder)
        found[name] = SimpleNamespace(ours=load_hf(str(folder)), theirs=theirs)
    return SimpleNamespace(**found)


@pytest.fixture(scope="module")
def dpo(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpo")
    return trl.dpo_trainer(models.policy.theirs, models.reference.theirs, folder)


def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@partial(jax.jit, static_argnums=2)
def logprobs_of(model: Llama, rows: TokenBatch, num_segments: int) -> jax.Array:
    return segment_logprobs(model, rows, num_segments, loss_chunk_tokens=CHUNK)


def reference_of(model: Llama, batch: PreferenceBatch | UnpairedBatch) -> np.ndarray:
    with jax.set_mesh(one_device()):
        return np.asarray(logprobs_of(model, batch.rows, batch.reference_logprobs.shape[-1]))


def pairs_in_rows(pairs: list[Pair], reference: Llama) -> PreferenceBatch:
    batch = preference_batch(in_rows(pairs), LENGTH)
    return replace(batch, reference_logprobs=reference_of(reference, batch))


def run(config: PreferenceConfig, model: Llama, batch, *, parts: int = 1, mesh=None):
    """Return loss, mean gradient, metrics and sums of ``parts`` micro-batches on ``mesh``."""
    mesh = mesh or one_device()
    objective = make_objective(config, num_corpora=2, loss_chunk_tokens=CHUNK, seed=0)
    rows = jax.NamedSharding(mesh, partition_spec("microbatch", "batch", None))
    cut = lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:])
    batch = jax.device_put(jax.tree.map(cut, batch), rows)
    model = jax.device_put(model, shardings(model, mesh))
    with jax.set_mesh(mesh):
        step = jax.jit(lambda state, batch: _accumulate(objective, state, batch))
        gradients, loss, weight, sums = step(TrainState(model, (), ()), batch)
    gradients = jax.tree.map(lambda g: np.asarray(g) / float(weight), gradients)
    return float(loss / weight), gradients, mean_metrics(jax.device_get(sums)), jax.device_get(sums)


def assert_gradient(ours: Llama, theirs, tolerance: float = 1e-4) -> None:
    """Assert that the gradient of every parameter equals ``theirs.grad`` in PyTorch."""
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    seen = set()
    for path, gradient in parameters_by_path(ours).items():
        rename = BY_OURS[path]
        gradient = np.asarray(gradient[...])
        for layer, part in enumerate(gradient if rename.stacked else [gradient]):
            want = expected[rename.tensor(layer)]
            have = part.T if rename.transposed else part
            assert np.linalg.norm(have - want) <= tolerance * np.linalg.norm(want), (path, layer)
            seen.add(rename.tensor(layer))
    assert seen == set(expected)


def assert_metrics(have: dict, want: dict, *names: str) -> None:
    for name in names:
        np.testing.assert_allclose(have[name], want[name], rtol=1e-4, atol=1e-4, err_msg=name)


REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
LOGPS = ("logps/chosen", "logps/rejected")


@pytest.mark.parametrize(
    ("loss", "fields"),
    [
        ("sigmoid", {}),
        # test_preference_losses compares these formulas with their equations.
        pytest.param("robust", {"label_smoothing": 0.2}, marks=pytest.mark.slow),
        pytest.param("hinge", {}, marks=pytest.mark.slow),
        ("ipo", {}),
        pytest.param("sigmoid_norm", {}, marks=pytest.mark.slow),
    ],
)
def test_losses_with_a_reference_equal_trl(loss, fields, models, dpo):
    config = PreferenceConfig(loss=loss, beta=0.3, **fields)
    settings = {"beta": 0.3, "loss_types": [loss], "loss_weights": [1.0]}
    want, want_metrics = trl.run_dpo(dpo, PAIRS, **settings, label_smoothing=config.label_smoothing)
    batch = pairs_in_rows(PAIRS, models.reference.ours)
    have, gradient, metrics, _ = run(config, models.policy.ours, batch)
    np.testing.assert_allclose(have, want, rtol=1e-4)
    assert_metrics(metrics, want_metrics, *REWARDS, *LOGPS)
    assert_gradient(gradient, models.policy.theirs)


def of_equal_answers(pairs: list[Pair]) -> list[Pair]:
    """Return ``pairs`` with prompts of one token and chosen answers of equal length.

    For such pairs our NLL and TRL's agree. TRL's NLL is a mean over the tokens of all chosen
    answers, for ORPO including the prompts. Our NLL is first averaged over the tokens of an answer,
    then over the pairs.
    """
    return [Pair(p.prompt[:1], (p.chosen * 4)[:4], p.rejected) for p in pairs]


@pytest.mark.slow
def test_nll_term_equals_trl(models, dpo):
    pairs = of_equal_answers(PAIRS)
    settings = {"beta": 0.3, "loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}
    want, _ = trl.run_dpo(dpo, pairs, **settings)
    batch = pairs_in_rows(pairs, models.reference.ours)
    config = PreferenceConfig(loss="sigmoid", beta=0.3, nll_weight=0.2)
    have, gradient, metrics, _ = run(config, models.policy.ours, batch)
    np.testing.assert_allclose(have, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["nll"], -metrics["logps/chosen"] / 4, rtol=1e-5)
    assert_gradient(gradient, models.policy.theirs)


def test_simpo_equals_trl(models):
    settings = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7}
    theirs = models.policy.theirs
    want, want_metrics = trl.run_odds(trl.CPOTrainer, theirs, PAIRS, **settings)
    config = PreferenceConfig(loss="simpo", beta=2.0, gamma=0.7)
    batch = preference_batch(in_rows(PAIRS), LENGTH)
    have, gradient, metrics, _ = run(config, models.policy.ours, batch)
    np.testing.assert_allclose(have, want, rtol=1e-4)
    assert_metrics(metrics, want_metrics, *REWARDS, *LOGPS)
    assert_gradient(gradient, theirs)


@pytest.mark.slow
def test_orpo_equals_trl(models):
    pairs, theirs = of_equal_answers(PAIRS), models.policy.theirs
    want, want_metrics = trl.run_odds(trl.ORPOTrainer, theirs, pairs, beta=0.3)
    config = PreferenceConfig(loss="orpo", beta=0.3)
    batch = preference_batch(in_rows(pairs), LENGTH)
    have, gradient, metrics, _ = run(config, models.policy.ours, batch)
    np.testing.assert_allclose(have, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["nll"], want_metrics["nll_loss"], rtol=1e-4)
    assert_metrics(metrics, want_metrics, *REWARDS, *LOGPS)
    assert_gradient(gradient, theirs)


@pytest.mark.parametrize("shift", [0.0, 40.0])
def test_kto_equals_trl(shift, models, tmp_path):
    """The divergence is positive for shift 0, and clipped to 0 for shift 40.

    ``shift``, in nats, is added to the log-probabilities of the reference model.
    """
    answers = random_judged(6)
    batch = unpaired_batch([answers[:2], answers[2:]], LENGTH)
    reference = reference_of(models.reference.ours, batch) + np.float32(shift)
    columns = reference[np.repeat(batch.answer_mask > 0, 2, axis=1)].reshape(-1, 2)
    trainer = trl.kto_trainer(models.policy.theirs, models.reference.theirs, tmp_path)
    trainer.precompute_ref_logps = shift > 0
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    want, want_metrics = trl.run_kto(
        trainer, answers, columns if shift else None, beta=0.05, **weights
    )
    config = PreferenceConfig(loss="kto", beta=0.05, desirable_weight=1.5, undesirable_weight=0.5)
    batch = replace(batch, reference_logprobs=reference)
    have, gradient, metrics, _ = run(config, models.policy.ours, batch)
    np.testing.assert_allclose(have, want, rtol=1e-4)
    assert_metrics(metrics, want_metrics, *REWARDS[:3], *LOGPS, "kl")
    assert (want_metrics["kl"] > 0) == (shift == 0)
    assert_gradient(gradient, models.policy.theirs)


def test_loss_is_log_2_and_margins_are_0_at_the_reference(models):
    batch = pairs_in_rows(PAIRS, models.policy.ours)
    loss, _, metrics, _ = run(PreferenceConfig(loss="sigmoid"), models.policy.ours, batch)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
    assert metrics["rewards/margins"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "parts", "axes"),
    [
        pytest.param(
            {"loss": "sigmoid", "label_smoothing": 0.1, "nll_weight": 0.2},
            4,
            (1, 1, 1),
            marks=pytest.mark.slow,
        ),
        pytest.param({"loss": "orpo"}, 1, (2, 2, 2), marks=pytest.mark.slow),
        ({"loss": "ipo", "nll_weight": 0.2}, 2, (1, 2, 1)),
    ],
)
def test_microbatches_and_meshes_leave_loss_and_gradients_unchanged(fields, parts, axes, models):
    config = PreferenceConfig(**fields)
    batch = pairs_in_rows(PAIRS, models.reference.ours)
    want = run(config, models.policy.ours, batch)
    mesh = make_mesh(MeshConfig(*axes), jax.devices()[: math.prod(axes)])
    have = run(config, models.policy.ours, batch, parts=parts, mesh=mesh)
    np.testing.assert_allclose(have[0], want[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(have[3]), jax.tree.leaves(want[3]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(have[1]), jax.tree.leaves(want[1]), strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b)


@pytest.mark.slow
def test_packing_leaves_losses_unchanged(models):
    """Missing pairs, other pairs in the row and padding do not change the loss of a pair."""
    config = PreferenceConfig(loss="sigmoid", nll_weight=0.1)
    packed = preference_batch(in_rows(PAIRS), LENGTH)
    alone = preference_batch([[pair] for pair in PAIRS], 24)
    # Rows of the packed batch belong to corpora 0, 1, 0 (an empty row) and 1.
    corpus = np.repeat(np.array([[0], [0], [1], [1], [1], [1], [1]], np.int32), 24, axis=1)
    alone = replace(alone, rows=replace(alone.rows, corpus=corpus))
    have, want = (run(config, models.policy.ours, batch) for batch in (packed, alone))
    np.testing.assert_allclose(have[0], want[0], rtol=1e-5)
    for a, b in zip(have[3]["corpus_loss"], want[3]["corpus_loss"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_array_equal(have[3]["corpus_loss"][1], [2, 5])
