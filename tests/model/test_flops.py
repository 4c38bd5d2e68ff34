"""Tests of the FLOPs per token against a count of the model's arrays and Llama 3 8B's figure."""

import math

import jax
from jax import numpy as jnp
import pytest

from llama_cpt.config.model import ModelConfig
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.model.llama import abstract_llama

TINY = ModelConfig(
    vocab_size=97,
    embed_dim=24,
    mlp_dim=40,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    rope_theta=1e4,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=False,
    context_length=64,
)


def test_flops_equal_a_count_of_matrices_and_visible_pairs():
    model = abstract_llama(TINY)
    matrices = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model) if len(leaf.shape) > 1)
    norms = TINY.num_layers * TINY.embed_dim * 2
    lookup = TINY.vocab_size * TINY.embed_dim
    length = 64
    # Two products of a multiplication and an addition, forward and twice that backward, over the
    # pairs key < query and half the diagonal.
    pairs = sum(query + 0.5 for query in range(length))
    attention = 3 * TINY.num_layers * 2 * 2 * TINY.num_heads * TINY.head_dim * pairs / length
    expected = 6 * (matrices - norms - lookup) + attention
    assert model_flops_per_token(TINY, length) == jnp.float32(expected)
    # Frozen matrices have no gradient: what remains is forward, and backward to the activations.
    expected -= 2 * (matrices - norms - lookup)
    assert model_flops_per_token(TINY, length, frozen=True) == jnp.float32(expected)


def test_flops_of_llama_3_8b():
    """At length 8192: 6 x 7.50e9 FLOPs of matrix products and 6.44e9 of causal attention."""
    llama_8b = ModelConfig(
        128256, 4096, 14336, 32, 32, 8, 128, 5e5, None, 1e-5, False, context_length=8192
    )
    assert model_flops_per_token(llama_8b, 8192) == pytest.approx(51.47e9, rel=1e-3)
