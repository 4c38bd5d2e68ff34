"""Tests that the custom VJPs of the layers and the MLP equal automatic differentiation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.config.schema import MeshConfig
from llama_cpt.model.mlp import mlp, sliced_mlp, slices
from llama_cpt.model.scan_layers import DEEP, run_layers
from llama_cpt.parallel.mesh import make_mesh, partition_spec


def normal(*shape: int) -> jax.Array:
    draw = np.random.default_rng(sum(shape))
    return jnp.asarray(draw.normal(size=shape) / 4, jnp.float32)


# The inputs of 640 tokens are larger than the gradients of 20 layers, those of 16 tokens smaller.
@pytest.mark.parametrize("tokens", [16, 80, 640])
def test_two_loops_have_the_gradients_of_one(tokens):
    layers = {"matrix": normal(DEEP + 4, 32, 32), "scale": normal(DEEP + 4, 32)}
    x, shift = normal(1, tokens, 32), normal(1, tokens, 32)

    def layer(shift: jax.Array, x: jax.Array, block: dict) -> jax.Array:
        return x + jnp.tanh((x * block["scale"][None, None]) @ block["matrix"] + shift)

    def loss(x: jax.Array, layers: dict, remat: str) -> jax.Array:
        return jnp.square(run_layers(layer, shift, x, layers, remat=remat)).mean()

    def passes(remat: str) -> list[jax.Array]:
        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
        return jax.tree.leaves(run(x, layers, remat))

    for have, want in zip(passes("full"), passes("none"), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-7)


def test_sliced_mlp_has_the_gradients_of_the_whole():
    mesh = make_mesh(MeshConfig(1, 8, 1))
    x, gate, up, down = normal(8, 3, 16), normal(16, 8192), normal(16, 8192), normal(8192, 16)

    def passes(function: Callable[..., Any]) -> tuple:
        return jax.jit(jax.value_and_grad(lambda *all: jnp.sin(function(*all)).sum(), range(4)))(
            x, *matrices
        )

    with jax.set_mesh(mesh):
        placed = (
            partition_spec("embed", "mlp"),
            partition_spec("embed", "mlp"),
            partition_spec("mlp", "embed"),
        )
        matrices = [
            jax.device_put(matrix, jax.NamedSharding(mesh, place))
            for matrix, place in zip((gate, up, down), placed, strict=True)
        ]
        assert slices(8192) == 2
        whole, sliced = passes(mlp), passes(sliced_mlp)
    for have, want in zip(jax.tree.leaves(sliced), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("hidden", "tensor", "count"), [(4096, 1, 1), (14336, 1, 4), (28672, 1, 8), (28672, 2, 1)]
)
def test_number_of_slices(hidden, tensor, count):
    with jax.set_mesh(make_mesh(MeshConfig(1, 8 // tensor, tensor))):
        assert slices(hidden) == count
