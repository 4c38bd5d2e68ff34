"""Tests of the model: published presets, remat, packing, precision, attention in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.llama3 import models
from llama_cpt.config.model import ModelConfig, RopeScaling
from llama_cpt.model.attention import attend, resolve_attention
from llama_cpt.model.llama import Llama, inverse_frequencies, with_precision
from llama_cpt.model.scan_layers import REMAT_POLICIES
from llama_cpt.runtime.errors import UserError

# The architecture's part of ``config.json`` in meta-llama's repositories on huggingface.co.
LLAMA3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}
LLAMA3_70B = {
    "vocab_size": 128256,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}
SCALING_31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
SCALING_32 = {**SCALING_31, "factor": 32.0}
PUBLISHED = {
    "LLAMA3_8B": LLAMA3_8B,
    "LLAMA3_70B": LLAMA3_70B,
    "LLAMA31_8B": {**LLAMA3_8B, "rope_scaling": SCALING_31, "max_position_embeddings": 131072},
    "LLAMA31_70B": {**LLAMA3_70B, "rope_scaling": SCALING_31, "max_position_embeddings": 131072},
    "LLAMA32_1B": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": SCALING_32,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
    },
    "LLAMA32_3B": {
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": SCALING_32,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
    },
}
TINY = ModelConfig(
    vocab_size=64,
    embed_dim=32,
    mlp_dim=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=1e4,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32),
    norm_eps=1e-5,
    tied_embeddings=False,
    context_length=64,
)
LENGTHS = (5, 1, 17, 9)


def preset_names() -> list[str]:
    return [name for name, value in vars(models).items() if isinstance(value, ModelConfig)]


def test_every_preset_has_published_values():
    assert sorted(preset_names()) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_equals_the_published_config(name):
    published = PUBLISHED[name]
    scaling = published["rope_scaling"]
    heads = published["num_attention_heads"]
    assert getattr(models, name) == ModelConfig(
        vocab_size=published["vocab_size"],
        embed_dim=published["hidden_size"],
        mlp_dim=published["intermediate_size"],
        num_layers=published["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=published["num_key_value_heads"],
        head_dim=published.get("head_dim", published["hidden_size"] // heads),
        rope_theta=published["rope_theta"],
        rope_scaling=scaling
        and RopeScaling(
            scaling["factor"],
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
            scaling["original_max_position_embeddings"],
        ),
        norm_eps=published["rms_norm_eps"],
        tied_embeddings=published["tie_word_embeddings"],
        context_length=published["max_position_embeddings"],
    )


def packed() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the tokens, positions and segment ids of one row with several documents."""
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (1, sum(LENGTHS)))
    positions = np.concatenate([np.arange(n) for n in LENGTHS])[None]
    segments = np.repeat(np.arange(1, len(LENGTHS) + 1), LENGTHS)[None]
    return (
        jnp.asarray(tokens, jnp.int32),
        jnp.asarray(positions, jnp.int32),
        jnp.asarray(segments, jnp.int32),
    )


def test_packed_documents_do_not_see_each_other():
    model = Llama(TINY, jax.random.key(0))
    tokens, positions, segments = packed()
    logits = jax.jit(Llama.__call__)
    together = logits(model, tokens, positions, segments)
    assert together.dtype == jnp.float32
    start = 0
    for length in LENGTHS:
        part = slice(start, start + length)
        ones = jnp.ones((1, length), jnp.int32)
        alone = logits(model, tokens[:, part], positions[:, part], ones)
        np.testing.assert_allclose(together[:, part], alone, atol=1e-5)
        start += length


def test_a_token_does_not_see_the_next():
    model = Llama(TINY, jax.random.key(0))
    tokens, positions, _ = packed()
    one = jnp.ones_like(tokens)
    changed = tokens.at[0, 20].set((tokens[0, 20] + 1) % TINY.vocab_size)
    logits = jax.jit(Llama.__call__)
    before, after = (logits(model, row, positions, one) for row in (tokens, changed))
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert np.abs(before[:, 20:] - after[:, 20:]).max(axis=-1).min() > 1e-6


# On CPU, ``offload`` moves nothing: pinned host memory is the device's own memory.
@pytest.mark.parametrize(
    "remat",
    [
        pytest.param(name, marks=() if name == "dots" else pytest.mark.slow)
        for name in sorted(REMAT_POLICIES)
    ],
)
def test_remat_leaves_gradients_unchanged(remat):
    batch = packed()

    def gradients(remat: str) -> list[jax.Array]:
        model = Llama(TINY, jax.random.key(0), remat=remat)
        loss = lambda model: jnp.square(model.hidden(*batch) - 1).mean()
        return jax.tree.leaves(jax.jit(jax.grad(loss))(model))

    for have, want in zip(gradients(remat), gradients("none"), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-7)


def attention_in_float64(query, key, value, segments) -> np.ndarray:
    """Return attention, computed for each query and head over the visible keys."""
    batch, length, heads, head_dim = query.shape
    group = heads // key.shape[2]
    out = np.zeros(query.shape, np.float64)
    for b, t, n in np.ndindex(batch, length, heads):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        scores = key[b, seen, n // group] @ query[b, t, n] / np.sqrt(head_dim)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ value[b, seen, n // group] / weights.sum()
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_reference_attention_equals_the_formula_in_float64(kv_heads):
    draw = np.random.default_rng(0)
    query = draw.normal(size=(2, 12, 4, 8)).astype(np.float32)
    key, value = (draw.normal(size=(2, 12, kv_heads, 8)).astype(np.float32) for _ in range(2))
    segments = np.array([[1] * 5 + [2] * 7, [1] * 11 + [2]], np.int32)
    have = attend(*map(jnp.asarray, (query, key, value, segments)), implementation="reference")
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    want = attention_in_float64(query, key, value, segments)
    np.testing.assert_allclose(have, want, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "backend", "length", "dtype", "expected"),
    [
        ("auto over 2", "cpu", 100, "bfloat16", "reference"),
        ("auto over 2", "tpu", 1024, "bfloat16", "pallas"),
        ("auto over 2", "tpu", 640, "bfloat16", "=640 must be a multiple of 512"),
        ("auto over 2", "gpu", 512, "bfloat16", "selects nothing on a GPU with mesh.context=2"),
        ("splash over 2", "tpu", 512, "bfloat16", "needs whole rows, but mesh.context=2"),
        ("cudnn over 2", "gpu", 512, "bfloat16", "needs whole rows, but mesh.context=2"),
        ("auto", "cpu", 100, "bfloat16", "reference"),
        ("auto", "gpu", 8192, "bfloat16", "cudnn"),
        ("auto", "gpu", 8192, "float32", "reference"),
        ("auto", "tpu", 8192, "float32", "pallas"),
        ("splash", "tpu", 8192, "float32", "splash"),
        ("reference", "tpu", 100, "float32", "reference"),
        ("auto", "gpu", 16384, "bfloat16", r"set cudnn \(its mask takes 512 MiB"),
        ("cudnn", "gpu", 128, "float32", "set compute.dtype=bfloat16"),
        ("auto", "tpu", 8200, "bfloat16", "set reference"),
        ("splash", "tpu", 8200, "bfloat16", "=8200 must be a multiple of 128"),
        ("pallas", "cpu", 128, "bfloat16", "runs on TPUs, not on cpu"),
        ("cudnn", "tpu", 128, "bfloat16", "runs on GPUs, not on tpu"),
    ],
)
def test_resolve_attention_selects_or_rejects(name, backend, length, dtype, expected):
    name, _, context = name.partition(" over ")
    arguments = (name, backend, length, 64, dtype, int(context or 1))
    if " " not in expected:
        assert resolve_attention(*arguments) == expected
    else:
        with pytest.raises(UserError, match=expected):
            resolve_attention(*arguments)


def test_with_precision_leaves_the_model_unchanged_under_jit():
    model = Llama(TINY, jax.random.key(0), matmul_precision="int8")

    @jax.jit
    def precisions_seen(model: Llama) -> None:
        other = with_precision(model, "bf16")
        seen.extend([model.matmul_precision, other.matmul_precision])
        # The parameters are those of the argument, so that the program copies nothing.
        same = zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True)
        assert all(mine is its for mine, its in same)

    seen: list[str] = []
    precisions_seen(model)
    assert seen == ["int8", "bf16"]
    assert model.matmul_precision == "int8"


def test_rope_keeps_fast_pairs_and_stretches_slow_ones():
    plain = inverse_frequencies(128, 5e5, None)
    scaled = inverse_frequencies(128, 5e5, RopeScaling(8.0, 1.0, 4.0, 8192))
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_allclose(scaled[turns > 4], plain[turns > 4], rtol=1e-6)
    np.testing.assert_allclose(scaled[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
    assert (np.diff(scaled) < 0).all()
