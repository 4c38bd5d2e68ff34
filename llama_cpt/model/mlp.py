"""The gated MLP, and its backward pass in slices of the hidden dim, one after the other.

With y = sum over slices j of down_j(silu(gate_j x) up_j x), a slice's gradients need nothing of the
other slices: gathered weights, activations and the weights' gradients are there of one at a time.
Nothing is computed twice.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.model.linear import Matrix, matmul
from llama_cpt.parallel.mesh import constrain, partition_spec

# Units of a slice: about as many as fill the matrix units for long.
WIDTH = 4096


def mlp(
    x: Float[Array, "batch length embed"],
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    precision: str = "bf16",
) -> Float[Array, "batch length embed"]:
    """down(silu(gate x) up x) (Shazeer 2020, arXiv 2002.05202, section 2)."""
    gated = jax.nn.silu(matmul(x, gate, precision)) * matmul(x, up, precision)
    return matmul(constrain(gated, "batch", "length", "act_mlp"), down, precision)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def sliced_mlp(
    x: Float[Array, "batch length embed"],
    gate: Float[Array, "embed hidden"],
    up: Float[Array, "embed hidden"],
    down: Float[Array, "hidden embed"],
    precision: str = "bf16",
) -> Float[Array, "batch length embed"]:
    """``mlp``; the backward pass, in slices, starts from ``x``.

    Below bf16 a slice of ``down`` is quantised by itself there, its scales finer than the whole's.
    """
    return mlp(x, gate, up, down, precision)


def _forward(
    x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, precision: str
) -> tuple:
    return mlp(x, gate, up, down, precision), (x, (gate, up, down))


def _backward(precision: str, saved: tuple, d_y: jax.Array) -> tuple:
    x, matrices = saved
    count, places = slices(matrices[0].shape[1]), (1, 1, 0)
    width = matrices[0].shape[1] // count

    def one(d_x: jax.Array, number: jax.Array) -> tuple:
        part = [
            jax.lax.dynamic_slice_in_dim(matrix, number * width, width, place)
            for matrix, place in zip(matrices, places, strict=True)
        ]
        _, pull = jax.vjp(lambda x, *part: mlp(x, *part, precision), x, *part)
        more, *gradients = pull(d_y)
        return d_x + more.astype(d_x.dtype), gradients

    d_x, gradients = jax.lax.scan(one, jnp.zeros(x.shape, jnp.float32), jnp.arange(count))
    joined = [
        jnp.moveaxis(gradient, 0, place).reshape(matrix.shape)
        for gradient, matrix, place in zip(gradients, matrices, places, strict=True)
    ]
    return d_x.astype(x.dtype), *joined


sliced_mlp.defvjp(_forward, _backward)


def slices(hidden: int) -> int:
    """Of at most ``WIDTH`` units; 1 where none are even or the tensor axis has cut them already."""
    mesh, count = jax.sharding.get_abstract_mesh(), 1
    while hidden > count * WIDTH:
        count *= 2
    tensor = 1 if mesh.empty else mesh.shape[partition_spec("mlp")[0]]
    return count if tensor == 1 and hidden % (128 * count) == 0 else 1
