"""Tests that 8-bit products and their gradients equal Qwix's and are close to exact ones."""

from dataclasses import replace
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from qwix._src.core.dot_general_qt import DotGeneralQtConfig, dot_general_qt

from llama_cpt.config.schema import LoraConfig, MeshConfig
from llama_cpt.model import linear
from llama_cpt.model.linear import TYPES, matmul, quantized_matmul, require_qwix
from llama_cpt.model.llama import Llama
from llama_cpt.model.lora import Adapters, with_adapters
from llama_cpt.model.mlp import mlp, sliced_mlp
from llama_cpt.parallel.mesh import make_mesh, partition_spec
from llama_cpt.runtime.errors import UserError
from tests.training.tiny_step import MODEL, ragged_batch

PRECISIONS = list(TYPES)
# Relative errors of a product of long rows of normally distributed numbers. int8 rounds to 1/127
# of the largest value, and e4m3 to three binary digits.
ERROR = {"int8": 0.02, "fp8": 0.05}


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


X, MATRIX, PULLED = normal(4, 24, 64), normal(64, 48), normal(4, 24, 48)


def passes(function, *operands) -> list[jax.Array]:
    """Return the result of ``function`` and the gradients of its operands."""
    y, pull = jax.vjp(function, *operands)
    return [y, *pull(PULLED.astype(y.dtype))]


def distance(have: jax.Array, want: jax.Array) -> float:
    return float(jnp.linalg.norm((have - want).ravel()) / jnp.linalg.norm(want.ravel()))


def by_qwix(precision: str, tile: float | None = None):
    """Return Qwix's product, with rows and tokens merged into one dimension.

    ``tile`` is the share of the tokens that have a common scale in the gradient of the matrix.
    """
    forward, backward = TYPES[precision]
    config = DotGeneralQtConfig(
        lhs_qtype=forward,
        rhs_qtype=forward,
        dlhs_grad_qtype=backward,
        drhs_grad_qtype=backward,
        drhs_tile_size=tile,
    )
    dims = (((1,), (0,)), ((), ()))

    def function(x: jax.Array, matrix: jax.Array) -> jax.Array:
        y = dot_general_qt(x.reshape(-1, x.shape[-1]), matrix, dims, config)
        return y.reshape(*x.shape[:2], -1)

    return function


@pytest.mark.parametrize("precision", PRECISIONS)
def test_product_and_gradients_equal_qwix(precision):
    have = passes(lambda x, w: quantized_matmul(x, w, precision), X, MATRIX)
    for one, want in zip(have, passes(by_qwix(precision), X, MATRIX), strict=True):
        np.testing.assert_allclose(one, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_product_and_gradients_are_close_to_the_exact_ones(precision, dtype):
    x = X.astype(dtype)
    have = passes(lambda x, w: matmul(x, w, precision), x, MATRIX)
    want = passes(matmul, x, MATRIX)
    assert [one.dtype for one in have] == [dtype, dtype, jnp.float32]
    for place, (one, exact) in enumerate(zip(have, want, strict=True)):
        error = distance(one.astype(jnp.float32), exact.astype(jnp.float32))
        # A gradient in e5m2 has two binary digits.
        assert 0 < error < (2 if place and precision == "fp8" else 1) * ERROR[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("none", [0.0, 1e-20])
def test_zeros_leave_other_gradients_accurate(precision, none):
    """A token and a column with (almost) only zeros do not spoil the other gradients."""
    x, matrix = X.at[1, 3].set(none), (MATRIX / 64).at[:, 5].set(none)
    have = passes(lambda x, w: quantized_matmul(x, w, precision), x, matrix)
    for place, (one, exact) in enumerate(zip(have, passes(matmul, x, matrix), strict=True)):
        assert distance(one, exact) < (2 if place and precision == "fp8" else 1) * ERROR[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_device_scales_its_own_tokens(precision):
    """The gradient of the matrix on four devices equals Qwix's gradient with four tiles."""
    mesh = make_mesh(MeshConfig(1, 4, 1), jax.devices()[:4])
    function = jax.jit(lambda x, w: passes(lambda x, w: quantized_matmul(x, w, precision), x, w))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, jax.NamedSharding(mesh, partition_spec("batch", None, None)))
        have = function(
            x, jax.device_put(MATRIX, jax.NamedSharding(mesh, partition_spec("embed", None)))
        )
    tiled, whole = (passes(by_qwix(precision, tile), X, MATRIX) for tile in (1 / 4, None))
    for one, want in zip(have, tiled, strict=True):
        # A quotient halfway between two values can round differently in a compiled program.
        assert distance(one, want) < 2e-3
    assert distance(have[2], whole[2]) > 5e-3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sliced_mlp_is_close_to_the_exact_gradients(precision):
    x, gate, up, down = normal(2, 8, 16), normal(16, 8192), normal(17, 8192)[1:], normal(8192, 16)

    def gradients(function, precision: str) -> tuple:
        total = lambda *all: jnp.sin(function(*all, precision)).sum()
        return jax.jit(jax.grad(total, range(4)))(x, gate / 4, up / 4, down / 64)

    exact = gradients(mlp, "bf16")
    for one, want in zip(gradients(sliced_mlp, precision), exact, strict=True):
        assert 0 < distance(one, want) < 4 * ERROR[precision]


def test_sliced_mlp_has_a_backward_pass_in_eight_bits():
    x, gate, up, down = normal(2, 8, 16), normal(16, 8192), normal(16, 8192), normal(8192, 16)
    loss = lambda *all: jnp.sum(sliced_mlp(*all, "int8"))
    text = str(jax.make_jaxpr(jax.grad(loss, range(4)))(x, gate, up, down))
    # There are three products in the forward pass and six in the backward pass.
    assert text.count("preferred_element_type=int32") >= 9


def loss_of(model: Llama) -> jax.Array:
    rows = jax.tree.map(lambda x: jnp.asarray(x[0, :4]), ragged_batch(1))
    hidden = model.hidden(rows.tokens, rows.positions, rows.segment_ids)
    return jnp.square(hidden - 1.0).mean()


@pytest.mark.parametrize(
    ("precision", "remat"),
    [
        # The products and their gradients are compared in the tests above.
        pytest.param("int8", "none", marks=pytest.mark.slow),
        pytest.param("fp8", "full", marks=pytest.mark.slow),
        pytest.param("int8", "full", marks=pytest.mark.slow),
        pytest.param("fp8", "none", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_a_model_point_in_the_exact_direction(precision, remat):
    config = replace(MODEL, num_layers=1)

    def direction(precision: str) -> jax.Array:
        model = Llama(config, jax.random.key(0), remat=remat, matmul_precision=precision)
        gradients = jax.jit(jax.grad(loss_of))(model)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients.layers)])

    have, want = direction(precision), direction("bf16")
    assert not jnp.array_equal(have, want)
    assert have @ want / (jnp.linalg.norm(have) * jnp.linalg.norm(want)) > 0.98


def test_frozen_matrices_are_quantized_and_adapters_are_not():
    model = Llama(MODEL, jax.random.key(0), matmul_precision="int8")
    adapters = Adapters(LoraConfig(2, 4.0), model, jax.random.key(1))
    text = str(jax.make_jaxpr(lambda model: loss_of(model))(model))
    with_them = str(jax.make_jaxpr(lambda a: loss_of(with_adapters(model, a)))(adapters))
    assert text.count("preferred_element_type=int32") == 7
    assert with_them.count("preferred_element_type=int32") == 7


def test_bf16_multiplies_in_the_compute_type():
    for dtype in (jnp.float32, jnp.bfloat16):
        x = X.astype(dtype)
        want = passes(lambda x, w: jnp.einsum("bti,io->bto", x, w.astype(x.dtype)), x, MATRIX)
        for one, before in zip(passes(matmul, x, MATRIX), want, strict=True):
            assert jnp.array_equal(one, before)


def test_too_many_tokens_or_missing_qwix_is_rejected(monkeypatch):
    monkeypatch.setattr(linear, "MOST_TOKENS", 95)
    with pytest.raises(UserError, match="96 tokens per device"):
        passes(lambda x, w: quantized_matmul(x, w, "int8"), X, MATRIX)
    monkeypatch.setitem(sys.modules, "qwix", None)
    require_qwix("bf16")
    with pytest.raises(UserError, match=r"int8 needs qwix.*\.\[qwix\]"):
        require_qwix("int8")
