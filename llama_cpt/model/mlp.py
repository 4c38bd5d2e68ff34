"""The gated MLP, and its backward pass in slices of the hidden dimension, one after the other.

With y = sum over slices j of down_j(silu(gate_j x) up_j x), the gradients of a slice do not depend
on the other slices. So the gathered weights, the activations and the weights' gradients of only
one slice are in memory at a time, and nothing is computed twice.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.model.linear import Matrix, matmul
from llama_cpt.parallel.mesh import constrain, partition_spec

# Most hidden units per slice: still wide enough that a slice's products fill the matrix units.
MAX_SLICE_WIDTH = 4096


def mlp(
    x: Float[Array, "batch length embed"],
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    precision: str = "bf16",
) -> Float[Array, "batch length embed"]:
    """Return down(silu(gate x) up x) in the type of ``x``.

    SwiGLU (Shazeer 2020, arXiv 2002.05202, equation 6). ``precision`` is the type of the products'
    operands: ``bf16`` (the type of ``x``), ``int8`` or ``fp8``.
    """
    gated = jax.nn.silu(matmul(x, gate, precision)) * matmul(x, up, precision)
    return matmul(constrain(gated, "batch", "length", "act_mlp"), down, precision)


# Saves the input and the weights, which exist anyway. The activations, (batch, length, hidden), are
# recomputed slice by slice: saved, they would be the largest arrays of a layer.
@partial(jax.custom_vjp, nondiff_argnums=(4,))
def sliced_mlp(
    x: Float[Array, "batch length embed"],
    gate: Float[Array, "embed hidden"],
    up: Float[Array, "embed hidden"],
    down: Float[Array, "hidden embed"],
    precision: str = "bf16",
) -> Float[Array, "batch length embed"]:
    """Compute ``mlp``, with a backward pass that recomputes from ``x`` in slices.

    At a ``precision`` below bf16 the backward pass quantizes each slice of ``down`` on its own,
    with finer scales than those of the whole matrix.
    """
    return mlp(x, gate, up, down, precision)


def _forward(
    x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, precision: str
) -> tuple:
    return mlp(x, gate, up, down, precision), (x, (gate, up, down))


def _backward(precision: str, saved: tuple, d_y: jax.Array) -> tuple:
    x, matrices = saved
    # The hidden dimension is the columns of gate and up, and the rows of down.
    count, axes = slices(matrices[0].shape[1]), (1, 1, 0)
    width = matrices[0].shape[1] // count

    def one_slice(d_x: jax.Array, number: jax.Array) -> tuple:
        part = [
            jax.lax.dynamic_slice_in_dim(matrix, number * width, width, axis)
            for matrix, axis in zip(matrices, axes, strict=True)
        ]
        _, pull = jax.vjp(lambda x, *part: mlp(x, *part, precision), x, *part)
        d_x_part, *gradients = pull(d_y)
        return d_x + d_x_part.astype(d_x.dtype), gradients

    # The input's gradient is a sum over slices, so it accumulates in float32.
    d_x, gradients = jax.lax.scan(one_slice, jnp.zeros(x.shape, jnp.float32), jnp.arange(count))
    joined = [
        jnp.moveaxis(gradient, 0, axis).reshape(matrix.shape)
        for gradient, matrix, axis in zip(gradients, matrices, axes, strict=True)
    ]
    return d_x.astype(x.dtype), *joined


sliced_mlp.defvjp(_forward, _backward)


def slices(hidden: int) -> int:
    """Return the number of slices of ``hidden`` units, each of at most ``MAX_SLICE_WIDTH``.

    It is 1 if the slices would not be whole registers of 128, or if the tensor axis of the mesh
    cuts the hidden dimension already.
    """
    mesh, count = jax.sharding.get_abstract_mesh(), 1
    while hidden > count * MAX_SLICE_WIDTH:
        count *= 2
    tensor = 1 if mesh.empty else mesh.shape[partition_spec("mlp")[0]]
    return count if tensor == 1 and hidden % (128 * count) == 0 else 1
