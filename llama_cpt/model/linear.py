"""Matrix products of the model's layers, with or without a low-rank adapter."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.model.quantized import quantized_matmul


class Adapter(nnx.Module):
    """The factors A and B of a low-rank adapter, and its scale.

    ``a`` has shape (layers, in, rank), and ``b`` has shape (layers, rank, out). Inside the scan
    over layers, they are the factors of one layer and have no ``layers`` dimension.
    """

    def __init__(self, a: nnx.Param[jax.Array], b: nnx.Param[jax.Array], scale: float) -> None:
        self.a, self.b, self.scale = a, b, scale


class AdaptedMatrix(nnx.Module):
    """A matrix together with its adapter. In a model, it takes the place of the matrix."""

    def __init__(self, matrix: nnx.Param[jax.Array], adapter: Adapter) -> None:
        self.matrix, self.adapter = matrix, adapter


Matrix = nnx.Param[jax.Array] | jax.Array | AdaptedMatrix
"""A matrix (in, out) of one layer, with or without an adapter."""


def matmul(
    x: Float[Array, "batch length in"], matrix: Matrix, precision: str = "bf16"
) -> Float[Array, "batch length out"]:
    """Return x W, or x W + scale (x A) B if the matrix has an adapter, in the dtype of ``x``.

    Source: Hu et al. 2021, arXiv 2106.09685, equation 3. If B is 0, the result equals x W exactly.
    ``precision`` is the type to which the operands of x W are quantized: ``int8`` or ``fp8``. With
    ``bf16``, the operands have the dtype of ``x``. The products with A and B are never quantized,
    because they are small.
    """
    if not isinstance(matrix, AdaptedMatrix):
        return _multiply(x, matrix, precision)
    adapter = matrix.adapter
    # x A comes first, because it has only ``rank`` columns. A B would be as large as W.
    added = _multiply(_multiply(x, adapter.a) * adapter.scale, adapter.b)
    return _multiply(x, matrix.matrix, precision) + added


def _multiply(
    x: jax.Array, matrix: nnx.Param[jax.Array] | jax.Array, precision: str = "bf16"
) -> jax.Array:
    if precision != "bf16":
        return quantized_matmul(x, matrix[...], precision)
    return jnp.einsum("bti,io->bto", x, matrix[...].astype(x.dtype))


def has_adapters(tree: Any) -> bool:
    """Return whether the pytree ``tree`` contains an ``AdaptedMatrix``."""
    is_adapted = lambda node: isinstance(node, AdaptedMatrix)
    return any(map(is_adapted, jax.tree.leaves(tree, is_leaf=is_adapted)))
