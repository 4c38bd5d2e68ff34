"""Products with the model's matrices in eight bits, forward and backward, by Qwix.

Every operand is scaled so that the largest of its row, or of its column, is the largest that eight
bits hold; the products are of whole rows and columns, so the scales come out of them. Qwix's own
providers replace a matrix where a module reads its parameter; ours are read out of a stack by
number, so its two functions are called here.
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

# Of operands forward, and of gradients, which need the range more than the digits (Micikevicius et
# al. 2022, arXiv 2209.05433).
TYPES = {
    "int8": (jnp.int8, jnp.int8),
    "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2),
}
# So many products of two int8 are sure to fit into the int32 that they are added up in.
MOST_TOKENS = 2**17


def require_qwix(precision: str) -> None:
    """Raise UserError where ``precision`` needs Qwix and it is not installed."""
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
    """x W, each token and each column of W quantised to ``precision``; the result in x's type."""
    # float32: in bfloat16 a scale of its own and the quotient by it would each be rounded.
    wide = x.astype(jnp.float32), matrix.astype(jnp.float32)
    return _product(precision, *wide).astype(x.dtype)


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
    # A saved operand's scales lie along what is summed now: they go into the gradient, as in Qwix's
    # own backward pass (qwix/_src/core/dot_general_qt.py), and the operand is not quantised anew.
    tokens = _quantize(d_y * matrix.scale[None], dtype, (0, 1))
    d_x = _dot(tokens, matrix.qvalue, ((2,), (1,)))
    # Each device scales the tokens that it has: none waits for another's largest gradient, and what
    # is added up over devices is float32.
    rows, columns = _parted(x.qvalue, precision), _parted(d_y * x.scale, precision)
    columns = _quantize(columns, dtype, (0, 2, 4))
    parts = _dot(columns, rows, ((1, 3), (1, 3)), ((0, 2), (0, 2)))
    return d_x, parts.sum((0, 1)).T


_product.defvjp(_forward, _backward)


def _parted(x: jax.Array, precision: str) -> jax.Array:
    """(batch, length, dim) as (parts, rows, parts, tokens, dim): a device has one of the parts."""
    mesh = jax.sharding.get_abstract_mesh().shape
    rows, pieces = (
        math.prod(mesh.get(axis, 1) for axis in BATCH_AXES),
        context_parallel.context_size(),
    )
    batch, length, dim = x.shape
    tokens = batch * length // (rows * pieces)
    if precision == "int8" and tokens > MOST_TOKENS:
        raise UserError(
            f"compute.matmul_precision=int8: {tokens} tokens a device at a time are more than "
            f"int32 sums are sure to hold, {MOST_TOKENS}; set a smaller microbatch_size, or fp8."
        )
    return x.reshape(rows, batch // rows, pieces, length // pieces, dim)


def _quantize(x: jax.Array, dtype: Any, apart: tuple[int, ...]) -> Any:
    """A ``qwix.QArray``: one scale for each place of the dims ``apart``."""
    import qwix

    found = qwix.quantize(x, dtype, channelwise_axes=apart)
    # The scale of nothing but zeros is 1 there: in a gradient it would drown all others.
    largest = jnp.abs(x).max([d for d in range(x.ndim) if d not in apart], keepdims=True)
    return found.replace(scale=jnp.where(found.scale > largest, 0.0, found.scale))


def _dot(left: Any, right: Any, summed: tuple, batch: tuple = ((), ())) -> jax.Array:
    import qwix

    return qwix.dot_general(left, right, (summed, batch))
