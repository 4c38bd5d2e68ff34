"""Matrix products of the model's layers, with or without low-rank adapters and 8-bit operands.

Products with 8-bit operands, forward and backward, are computed with Qwix. Each row of the left
operand and each column of the right operand has a scale: the largest magnitude in the row or
column, divided by the largest 8-bit value. A product sums along whole rows and columns, so the
scales can be applied to the sums. This module calls Qwix's ``quantize`` and ``dot_general``
directly. Qwix's providers are not used, because they quantize a parameter when a module reads it,
but here the layers read their parameters from stacked arrays by index.
"""

import dataclasses
from functools import partial
import importlib
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.parallel import context_parallel
from llama_cpt.parallel.mesh import BATCH_AXES
from llama_cpt.runtime.errors import UserError

# For each precision, the dtype of the operands in the forward pass and the dtype of the gradients.
# Gradients in fp8 use e5m2, because they need more range and less precision than activations
# (Micikevicius et al. 2022, arXiv 2209.05433).
TYPES = {
    "int8": (jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}
# Maximum number of terms in a sum of products of two int8 values that cannot overflow int32:
# 127^2 * 2^17 is below 2^31.
MOST_TOKENS = 2**17

# Axes of the left and of the right operand of a product.
Axes = tuple[tuple[int, ...], tuple[int, ...]]


def require_qwix(precision: str) -> None:
    """Raise UserError if ``precision`` is not ``bf16`` and Qwix is not installed."""
    if precision == "bf16":
        return
    try:
        importlib.import_module("qwix")
    except ImportError:
        raise UserError(
            f"compute.matmul_precision={precision} needs qwix, which is not installed: "
            "pip install -e '.[qwix]', or set bf16."
        ) from None


def quantized_matmul(
    x: Float[Array, "batch length in"], matrix: Float[Array, "in out"], precision: str
) -> Float[Array, "batch length out"]:
    """Return x W in the dtype of ``x``, computed with operands of type ``precision``.

    Each token of ``x`` and each column of W has its own scale.
    """
    # The operands are quantized from float32. In bfloat16, the scale and the quotient by the scale
    # would both be rounded before the quotient is rounded to 8 bits.
    wide = x.astype(jnp.float32), matrix.astype(jnp.float32)
    product = _product(precision, *wide)
    assert isinstance(product, jax.Array)
    return product.astype(x.dtype)


# Custom VJP: the derivative of rounding is 0 almost everywhere. The backward pass therefore
# differentiates the product with respect to the quantized operands and uses these gradients as the
# gradients of ``x`` and W (straight-through estimator). The forward pass saves the quantized
# operands, which take one byte per value, and not the original ones.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(precision: str, x: jax.Array, matrix: jax.Array) -> jax.Array:
    return _forward(precision, x, matrix)[0]


def _forward(precision: str, x: jax.Array, matrix: jax.Array) -> tuple[jax.Array, tuple[Any, Any]]:
    dtype, _ = TYPES[precision]
    x, matrix = _quantize(x, dtype, (0, 1)), _quantize(matrix, dtype, (1,))
    return _dot(x, matrix, ((2,), (0,))), (x, matrix)


def _backward(
    precision: str, saved: tuple[Any, Any], d_y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, matrix = saved
    _, dtype = TYPES[precision]
    # d_x = d_y W^T sums over the columns of W. Each column has its own scale, so the scales cannot
    # be applied to the result of the sum. They are multiplied into d_y before d_y is quantized, as
    # in Qwix's backward pass (qwix/_src/core/dot_general_qt.py). The saved W is used without
    # quantizing it again.
    tokens = _quantize(d_y * matrix.scale[None], dtype, (0, 1))
    d_x = _dot(tokens, matrix.qvalue, ((2,), (1,)))
    # d_W = x^T d_y sums over the tokens of all devices. Each device's tokens are quantized with
    # separate scales, so the maxima need no communication. The sum over devices is in float32.
    rows, columns = (
        _split_by_device(x.qvalue, precision),
        _split_by_device(d_y * x.scale, precision),
    )
    columns = _quantize(columns, dtype, (0, 2, 4))
    parts = _dot(columns, rows, ((1, 3), (1, 3)), ((0, 2), (0, 2)))
    return d_x, parts.sum((0, 1)).T


_product.defvjp(_forward, _backward)


def _split_by_device(x: jax.Array, precision: str) -> jax.Array:
    """Reshape ``x`` so that separate dimensions index the devices and the tokens of a device.

    The shape (batch, length, dim) becomes (row parts, batch / row parts, length parts, length /
    length parts, dim). Raises UserError if the int8 sum over the tokens of a device can overflow.
    """
    mesh = jax.sharding.get_abstract_mesh().shape
    rows, pieces = (
        math.prod(mesh.get(axis, 1) for axis in BATCH_AXES),
        context_parallel.context_size(),
    )
    batch, length, dim = x.shape
    tokens = batch * length // (rows * pieces)
    if precision == "int8" and tokens > MOST_TOKENS:
        raise UserError(
            f"compute.matmul_precision=int8: {tokens} tokens per device exceed {MOST_TOKENS}, the "
            "most whose int32 sums cannot overflow; set a smaller microbatch_size, or fp8."
        )
    return x.reshape(rows, batch // rows, pieces, length // pieces, dim)


def _quantize(x: jax.Array, dtype: Any, apart: tuple[int, ...]) -> Any:
    """Return ``x`` as a ``qwix.QArray`` with a separate scale per index along axes ``apart``."""
    import qwix

    quantized = qwix.quantize(x, dtype, channelwise_axes=apart)
    # Qwix sets the scale of an all-zero row to 1, which is far larger than the other scales. The
    # backward pass multiplies scales into the gradient, and the quantization of the gradient would
    # then round all other values to 0. A scale of 0 avoids this.
    largest = jnp.abs(x).max([d for d in range(x.ndim) if d not in apart], keepdims=True)
    scale = jnp.where(quantized.scale > largest, 0.0, quantized.scale)
    return dataclasses.replace(quantized, scale=scale)


def _dot(left: Any, right: Any, summed: Axes, batch: Axes = ((), ())) -> jax.Array:
    import qwix

    return qwix.dot_general(left, right, (summed, batch))


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
