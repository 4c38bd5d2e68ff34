"""The gated MLP, and a backward pass that processes the hidden dimension in slices.

The output is y = sum over slices j of down_j(silu(gate_j x) up_j x). The gradients of a slice do
not depend on other slices, so the backward pass processes one slice after another. At any time,
only the gathered weights, the activations and the weight gradients of one slice are in memory.
Slicing adds no operations.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.model.linear import Matrix, matmul
from llama_cpt.parallel.mesh import constrain, partition_spec

# Maximum number of hidden units per slice. Slices of this width still keep the matrix units busy.
MAX_SLICE_WIDTH = 4096

# The input, and the matrices gate, up and down.
Saved = tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]


def mlp(
    x: Float[Array, "batch length embed"],
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    precision: str = "bf16",
) -> Float[Array, "batch length embed"]:
    """Return down(silu(gate x) up x) in the dtype of ``x``.

    This is SwiGLU (Shazeer 2020, arXiv 2002.05202, equation 6). ``precision`` is the type of the
    operands of the matrix products: ``int8``, ``fp8``, or ``bf16`` for the dtype of ``x``.
    """
    gated = jax.nn.silu(matmul(x, gate, precision)) * matmul(x, up, precision)
    return matmul(constrain(gated, "batch", "length", "act_mlp"), down, precision)


# Custom VJP: automatic differentiation would save the activations (batch, length, hidden), which
# are the largest arrays of a layer, or recompute all of them at once. Only the input and the
# weights are saved for the backward pass, and both are in memory in any case.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
def sliced_mlp(
    x: Float[Array, "batch length embed"],
    gate: Float[Array, "embed hidden"],
    up: Float[Array, "embed hidden"],
    down: Float[Array, "hidden embed"],
    precision: str = "bf16",
) -> Float[Array, "batch length embed"]:
    """Return the result of ``mlp``; the backward pass recomputes the activations in slices.

    With ``precision`` int8 or fp8, the backward pass quantizes each slice of ``down`` separately.
    The scales of a slice are at most as large as the scales of the whole matrix.
    """
    return mlp(x, gate, up, down, precision)


def _forward(
    x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, precision: str
) -> tuple[jax.Array, Saved]:
    return mlp(x, gate, up, down, precision), (x, (gate, up, down))


def _backward(precision: str, saved: Saved, d_y: jax.Array) -> tuple[jax.Array, ...]:
    x, matrices = saved
    # The hidden dimension is axis 1 of gate and up, and axis 0 of down.
    count, axes = slices(matrices[0].shape[1]), (1, 1, 0)
    width = matrices[0].shape[1] // count

    def one_slice(d_x: jax.Array, number: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        part = [
            jax.lax.dynamic_slice_in_dim(matrix, number * width, width, axis)
            for matrix, axis in zip(matrices, axes, strict=True)
        ]
        # The VJP recomputes the forward pass of this slice, so its activations are live only in
        # this iteration.
        _, pull = jax.vjp(lambda x, *part: mlp(x, *part, precision=precision), x, *part)
        d_x_part, *gradients = pull(d_y)
        return d_x + d_x_part.astype(d_x.dtype), gradients

    # The gradient of the input is a sum over slices, so it is accumulated in float32. The weight
    # gradients of the slices are disjoint parts of the full gradients.
    d_x, gradients = jax.lax.scan(one_slice, jnp.zeros(x.shape, jnp.float32), jnp.arange(count))
    joined = [
        jnp.moveaxis(gradient, 0, axis).reshape(matrix.shape)
        for gradient, matrix, axis in zip(gradients, matrices, axes, strict=True)
    ]
    return d_x.astype(x.dtype), *joined


sliced_mlp.defvjp(_forward, _backward)


def slices(hidden: int) -> int:
    """Return the number of slices into which an MLP with ``hidden`` hidden units is divided.

    The result is the smallest power of two with which a slice has at most ``MAX_SLICE_WIDTH``
    units. It is 1 if the slice width would not be a multiple of 128 (the width of a vector
    register), or if the hidden dimension is already partitioned over the mesh axis ``tensor``.
    """
    mesh, count = jax.sharding.get_abstract_mesh(), 1
    while hidden > count * MAX_SLICE_WIDTH:
        count *= 2
    tensor = 1 if mesh.empty else mesh.shape[partition_spec("mlp")[0]]
    return count if tensor == 1 and hidden % (128 * count) == 0 else 1
