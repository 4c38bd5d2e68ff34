"""Products with the model's matrices in eight bits, forward and backward, with Qwix.

Every operand is scaled so that the largest value of its row, or of its column, is the largest that
eight bits hold. A product sums over whole rows and columns, so their scales factor out of it.
Qwix's own providers replace a matrix when a module reads its parameter. Here parameters are read
out of a stack by number, so ``quantize`` and ``dot_general`` are called directly.
"""

from functools import partial
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.parallel import context_parallel
from llama_cpt.parallel.mesh import BATCH_AXES
from llama_cpt.runtime.errors import UserError

# Types of the operands in the forward pass and of the gradients, which need range more than digits
# (Micikevicius et al. 2022, arXiv 2209.05433).
TYPES = {
    "int8": (jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}
# The int32 accumulator is sure to hold the sum of so many products of two int8 values: 127^2 2^17
# is below 2^31.
MOST_TOKENS = 2**17


def require_qwix(precision: str) -> None:
    """Raise UserError if ``precision`` needs Qwix and it is not installed."""
    if precision == "bf16":
        return
    try:
        import qwix  # noqa: F401
    except ImportError:
        raise UserError(
            f"compute.matmul_precision={precision} needs qwix, which is not installed: "
            "pip install -e '.[qwix]', or set bf16."
        ) from None


def quantized_matmul(
    x: Float[Array, "batch length in"], matrix: Float[Array, "in out"], precision: str
) -> Float[Array, "batch length out"]:
    """Return x W in x's type, each token and each column of W quantized to ``precision``."""
    # In float32, because in bfloat16 the scale and the quotient by it would both be rounded.
    wide = x.astype(jnp.float32), matrix.astype(jnp.float32)
    return _product(precision, *wide).astype(x.dtype)


# Rounding has no useful gradient, so the backward pass is that of the product of the quantized
# operands (the straight-through estimator). It saves these operands, one byte per value.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(precision: str, x: jax.Array, matrix: jax.Array) -> jax.Array:
    return _forward(precision, x, matrix)[0]


def _forward(precision: str, x: jax.Array, matrix: jax.Array) -> tuple:
    dtype, _ = TYPES[precision]
    x, matrix = _quantize(x, dtype, (0, 1)), _quantize(matrix, dtype, (1,))
    return _dot(x, matrix, ((2,), (0,))), (x, matrix)


def _backward(precision: str, saved: tuple, d_y: jax.Array) -> tuple:
    x, matrix = saved
    _, dtype = TYPES[precision]
    # The scales of a saved operand lie along the dimension that is summed here, so they do not
    # factor out. They are multiplied into the gradient instead, as in Qwix's own backward pass
    # (qwix/_src/core/dot_general_qt.py), and the operand is not quantized a second time.
    tokens = _quantize(d_y * matrix.scale[None], dtype, (0, 1))
    d_x = _dot(tokens, matrix.qvalue, ((2,), (1,)))
    # Each device scales its own tokens: no device waits for the largest gradient of another, and
    # the sum over devices is float32.
    rows, columns = (
        _split_by_device(x.qvalue, precision),
        _split_by_device(d_y * x.scale, precision),
    )
    columns = _quantize(columns, dtype, (0, 2, 4))
    parts = _dot(columns, rows, ((1, 3), (1, 3)), ((0, 2), (0, 2)))
    return d_x, parts.sum((0, 1)).T


_product.defvjp(_forward, _backward)


def _split_by_device(x: jax.Array, precision: str) -> jax.Array:
    """Reshape (batch, length, dim) to (parts, rows, parts, tokens, dim), one part per device."""
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
            "most that int32 sums are sure to hold; set a smaller microbatch_size, or fp8."
        )
    return x.reshape(rows, batch // rows, pieces, length // pieces, dim)


def _quantize(x: jax.Array, dtype: Any, apart: tuple[int, ...]) -> Any:
    """Return a ``qwix.QArray`` with one scale per index of the dimensions ``apart``."""
    import qwix

    quantized = qwix.quantize(x, dtype, channelwise_axes=apart)
    # Qwix gives zeros a scale of 1. Multiplied into a gradient, it would be far larger than the
    # other scales, and the gradient's own quantization would round everything else to 0.
    largest = jnp.abs(x).max([d for d in range(x.ndim) if d not in apart], keepdims=True)
    return quantized.replace(scale=jnp.where(quantized.scale > largest, 0.0, quantized.scale))


def _dot(left: Any, right: Any, summed: tuple, batch: tuple = ((), ())) -> jax.Array:
    import qwix

    return qwix.dot_general(left, right, (summed, batch))
