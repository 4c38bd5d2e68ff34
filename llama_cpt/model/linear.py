"""Products with the model's matrices, with or without a low-rank adapter."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.model.quantized import quantized_matmul


class Adapter(nnx.Module):
    """The factors A and B of an adapter, stacked over layers like the matrix.

    ``a`` is (layers, in, rank) and ``b`` (layers, rank, out); inside the scan they have no layers.
    """

    def __init__(self, a: nnx.Param, b: nnx.Param, scale: float) -> None:
        self.a, self.b, self.scale = a, b, scale


class AdaptedMatrix(nnx.Module):
    """A matrix with its adapter, which replaces the matrix in the model."""

    def __init__(self, matrix: nnx.Param, adapter: Adapter) -> None:
        self.matrix, self.adapter = matrix, adapter


Matrix = nnx.Param | jax.Array | AdaptedMatrix
"""A matrix (in, out) of one layer, as ``matmul`` takes it."""


def matmul(
    x: Float[Array, "batch length in"], matrix: Matrix, precision: str = "bf16"
) -> Float[Array, "batch length out"]:
    """Return x W, or x W + scale (x A) B, in the type of ``x``.

    Hu et al. 2021, arXiv 2106.09685, equation 3. If B is 0, the sum is x W to the last bit.
    ``precision`` is the type of the operands of x W; ``bf16`` multiplies in the type of ``x``. The
    products with A and B always do, because they are small.
    """
    if not isinstance(matrix, AdaptedMatrix):
        return _multiply(x, matrix, precision)
    adapter = matrix.adapter
    # x A first: its rank is small, while A B would be as large as W.
    added = _multiply(_multiply(x, adapter.a) * adapter.scale, adapter.b)
    return _multiply(x, matrix.matrix, precision) + added


def _multiply(x: jax.Array, matrix: nnx.Param | jax.Array, precision: str = "bf16") -> jax.Array:
    if precision != "bf16":
        return quantized_matmul(x, matrix[...], precision)
    return jnp.einsum("bti,io->bto", x, matrix[...].astype(x.dtype))


def has_adapters(tree: Any) -> bool:
    """Return whether any matrix of ``tree`` has an adapter."""
    is_adapted = lambda node: isinstance(node, AdaptedMatrix)
    return any(map(is_adapted, jax.tree.leaves(tree, is_leaf=is_adapted)))
