"""Low-rank adapters of a Llama's matrices (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.config.schema import LoraConfig
from llama_cpt.model.linear import AdaptedMatrix, Adapter
from llama_cpt.model.llama import Llama, shallow_copy
from llama_cpt.runtime.errors import UserError


class Adapters(nnx.Module):
    """The adapters of a model, a float32 pytree with one attribute, an ``Adapter``, per target.

    A is uniform in +-1/sqrt(in), as in PEFT, and B is 0, so that new adapters add nothing.
    """

    def __init__(self, config: LoraConfig, model: Llama, key: jax.Array) -> None:
        self.targets = config.targets
        keys = jax.random.split(key, len(config.targets))
        for target, part in zip(config.targets, keys, strict=True):
            check_rank(config.rank, target, getattr(model.layers, target))
            setattr(self, target, _adapter(config, getattr(model.layers, target), part))


def abstract_adapters(config: LoraConfig, model: Llama) -> Adapters:
    """Return adapters of ShapeDtypeStructs; raise UserError if the rank is too large."""
    return jax.eval_shape(lambda: Adapters(config, model, jax.random.key(0)))


def with_adapters(model: Llama, adapters: Adapters) -> Llama:
    """Return ``model`` with the adapters attached to its matrices; no array is copied."""
    adapted = shallow_copy(model)
    for target in adapters.targets:
        matrix = getattr(model.layers, target)
        setattr(adapted.layers, target, AdaptedMatrix(matrix, getattr(adapters, target)))
    return adapted


def merge_adapters(model: Llama, adapters: Adapters) -> Llama:
    """Return ``model`` with the products of the adapters added to its matrices.

    The adapted matrices of ``model`` itself are deleted one by one, so that the peak of memory is
    one model and one matrix.
    """
    result = shallow_copy(model)
    for target in adapters.targets:
        matrix, adapter = getattr(model.layers, target), getattr(adapters, target)
        merged = merge_matrix(matrix[...], adapter.a[...], adapter.b[...], adapter.scale)
        merged = jax.device_put(merged, matrix[...].sharding)
        # Freed at once: the matrices and their merged copies together may exceed the memory.
        matrix[...].delete()
        setattr(result.layers, target, matrix.replace(merged))
    return result


@jax.jit
def merge_matrix(
    matrix: Float[Array, "layers in out"],
    a: Float[Array, "layers in rank"],
    b: Float[Array, "layers rank out"],
    scale: float | Float[Array, ""],
) -> Float[Array, "layers in out"]:
    """Return W + scale A B in the type of W (arXiv 2106.09685, equation 3)."""
    # A TPU rounds float32 operands to bfloat16 unless the highest precision is requested.
    added = jnp.einsum("lir,lro->lio", a, b, precision=jax.lax.Precision.HIGHEST)
    return (matrix + scale * added).astype(matrix.dtype)


def combine(trained: Any, frozen: Any) -> Llama:
    """Return the model of a state: ``trained``, or ``frozen`` with ``trained`` as its adapters."""
    return with_adapters(frozen, trained) if isinstance(trained, Adapters) else trained


def cast_model(model: Llama, dtype: Any) -> Llama:
    """Return ``model`` in the type ``dtype``.

    Arrays are cast one after the other, and each array of another type is deleted, so that the peak
    of memory is one model and one array.
    """
    dtype = jnp.dtype(dtype)

    def cast(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == dtype:
            return leaf
        result = jax.jit(lambda x: x.astype(dtype), out_shardings=leaf.sharding)(leaf)
        leaf.delete()
        return result

    return jax.tree.map(cast, model)


def cast_abstract(model: Llama, dtype: Any) -> Llama:
    """Return an abstract model in the type ``dtype``, without shardings."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), model)


def check_rank(rank: int, target: str, matrix: nnx.Param) -> None:
    """Raise UserError if the rank exceeds that of the matrix."""
    largest = min(matrix.shape[1:])
    if rank > largest:
        raise UserError(
            f"lora.rank={rank} exceeds the rank of the matrix {target!r}, {largest}; set a smaller "
            "rank, or remove the matrix from lora.targets."
        )


def _adapter(config: LoraConfig, matrix: nnx.Param, key: jax.Array) -> Adapter:
    layers, rows, columns = matrix.shape
    _, row_axis, column_axis = matrix.get_metadata("axes")
    bound = rows**-0.5
    a = jax.random.uniform(key, (layers, rows, config.rank), minval=-bound, maxval=bound)
    return Adapter(
        nnx.Param(a, axes=("layers", row_axis, "rank")),
        nnx.Param(jnp.zeros((layers, config.rank, columns)), axes=("layers", "rank", column_axis)),
        config.scale,
    )
