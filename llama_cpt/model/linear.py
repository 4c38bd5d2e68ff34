"""A product with one of the model's matrices, with or without an adapter beside it."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.model.quantized import quantized_matmul


class Adapter(nnx.Module):
    """The factors of what is added to a matrix, stacked over layers as it is.

    ``a`` is (layers, in, rank), ``b`` (layers, rank, out); inside the scan both lack the layers.
    """

    def __init__(self, a: nnx.Param, b: nnx.Param, scale: float) -> None:
        self.a, self.b, self.scale = a, b, scale


class AdaptedMatrix(nnx.Module):
    """A matrix with an adapter beside it: what stands in the model in the matrix's place."""

    def __init__(self, matrix: nnx.Param, adapter: Adapter) -> None:
        self.matrix, self.adapter = matrix, adapter


Matrix = nnx.Param | jax.Array | AdaptedMatrix


def matmul(
    x: Float[Array, "batch length in"], matrix: Matrix, precision: str = "bf16"
) -> Float[Array, "batch length out"]:
    """x W, or x W + scale (x A) B (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    Where B is 0 the sum is x W to the last bit. ``precision`` is of W's operands; ``bf16`` takes
    them in x's type, as A's and B's are always: they are small.
    """
    if not isinstance(matrix, AdaptedMatrix):
        return _times(x, matrix, precision)
    adapter = matrix.adapter
    added = _times(_times(x, adapter.a) * adapter.scale, adapter.b)
    return _times(x, matrix.matrix, precision) + added


def _times(x: jax.Array, matrix: nnx.Param | jax.Array, precision: str = "bf16") -> jax.Array:
    if precision != "bf16":
        return quantized_matmul(x, matrix[...], precision)
    return jnp.einsum("bti,io->bto", x, matrix[...].astype(x.dtype))


def has_adapters(tree: Any) -> bool:
    """Whether any matrix of ``tree`` has an adapter beside it."""
    is_adapted = lambda node: isinstance(node, AdaptedMatrix)
    return any(map(is_adapted, jax.tree.leaves(tree, is_leaf=is_adapted)))
