"""Our model and transformers' LlamaForCausalLM give equal logits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llama_cpt.model.llama import Llama
from llama_cpt.weights.hf_names import BY_OURS, parameters_by_path
from llama_cpt.weights.hf_weights import load_hf
from tests.weights.hf_models import LLAMA3_ROPE, SMALL, save_llama, token_rows

VARIANTS = {
    "mha": {"num_key_value_heads": 4},
    "gqa": {},
    "one_kv_head": {"num_key_value_heads": 1},
    "head_dim": {"head_dim": 20},
    "tied": {"tie_word_embeddings": True},
    "llama3_rope": {"rope_parameters": LLAMA3_ROPE},
    "llama3_rope_tied_gqa": {
        "rope_parameters": {**LLAMA3_ROPE, "factor": 32.0},
        "tie_word_embeddings": True,
        "head_dim": 16,
    },
    "odd_vocabulary": {"vocab_size": 131},
    "eps": {"rms_norm_eps": 1e-6},
    "one_layer_wide_mlp": {"num_hidden_layers": 1, "intermediate_size": 201},
}


def inputs(tokens: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return jnp.asarray(tokens), jnp.asarray(positions), jnp.ones(tokens.shape, jnp.int32)


# These cover grouped queries, a separate head size, scaled RoPE angles and tied embeddings.
FAST = ("gqa", "head_dim", "llama3_rope_tied_gqa")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in VARIANTS]
)
def test_logits(name, tmp_path):
    fields = VARIANTS[name]
    path = save_llama(tmp_path, **fields)
    theirs = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    # The length is three times the original context of the scaled RoPE.
    tokens = token_rows({**SMALL, **fields}["vocab_size"], rows=2, length=96)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens).long()).logits.numpy()
    logits = load_hf(path)(*inputs(tokens))
    assert logits.dtype == jnp.float32 and np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "name", [pytest.param("gqa", marks=pytest.mark.slow), "llama3_rope_tied_gqa"]
)
def test_gradients(name, tmp_path):
    path = save_llama(tmp_path, **VARIANTS[name])
    tokens = token_rows(SMALL["vocab_size"], rows=2, length=64)
    theirs = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    batch = torch.tensor(tokens).long()
    logits = theirs(batch[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
    expected = {key: p.grad.numpy() for key, p in theirs.named_parameters() if p.grad is not None}

    def loss(model: Llama) -> jax.Array:
        logprobs = jax.nn.log_softmax(model(*inputs(tokens[:, :-1])))
        return -jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1).mean()

    seen = set()
    for ours, gradient in parameters_by_path(jax.grad(loss)(load_hf(path))).items():
        rename = BY_OURS[ours]
        gradient = np.asarray(gradient[...])
        for layer, part in enumerate(gradient if rename.stacked else [gradient]):
            want = expected[rename.tensor(layer)]
            have = part.T if rename.transposed else part
            assert np.linalg.norm(have - want) <= 1e-4 * np.linalg.norm(want), (ours, layer)
            seen.add(rename.tensor(layer))
    assert seen == set(expected)
