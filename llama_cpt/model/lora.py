"""Low-rank adapters for the matrices of a Llama (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

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
    """The adapters of a model: a float32 pytree with an ``Adapter`` attribute per target matrix.

    The initial values of A are drawn uniformly between -1/sqrt(in) and 1/sqrt(in), as in PEFT. B is
    initialized to 0, so that new adapters do not change the model's output.
    """

    def __init__(self, config: LoraConfig, model: Llama, key: jax.Array) -> None:
        self.targets = config.targets
        keys = jax.random.split(key, len(config.targets))
        for target, part in zip(config.targets, keys, strict=True):
            check_rank(config.rank, target, getattr(model.layers, target))
            setattr(self, target, _adapter(config, getattr(model.layers, target), part))


def abstract_adapters(config: LoraConfig, model: Llama) -> Adapters:
    """Return the adapters for ``model``, with ShapeDtypeStructs instead of arrays.

    Raises UserError if ``config.rank`` exceeds the rank of a target matrix.
    """
    return jax.eval_shape(lambda: Adapters(config, model, jax.random.key(0)))


def with_adapters(model: Llama, adapters: Adapters) -> Llama:
    """Return a copy of ``model`` in which the adapters are attached to their target matrices.

    The copy shares all arrays with ``model`` and ``adapters``.
    """
    adapted = shallow_copy(model)
    for target in adapters.targets:
        matrix = getattr(model.layers, target)
        setattr(adapted.layers, target, AdaptedMatrix(matrix, getattr(adapters, target)))
    return adapted


def merge_adapters(model: Llama, adapters: Adapters) -> Llama:
    """Return a model in which every target matrix W is replaced by W + scale A B.

    The target matrices of ``model`` are deleted one by one, so that peak memory is one model and
    one matrix. ``model`` cannot be used afterwards.
    """
    result = shallow_copy(model)
    for target in adapters.targets:
        matrix, adapter = getattr(model.layers, target), getattr(adapters, target)
        merged = merge_matrix(matrix[...], adapter.a[...], adapter.b[...], adapter.scale)
        merged = jax.device_put(merged, matrix[...].sharding)
        # The matrix is freed immediately, because two copies of all matrices can exceed the memory.
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
    """Return W + scale A B in the dtype of W (arXiv 2106.09685, equation 3)."""
    # A TPU rounds float32 operands to bfloat16 unless the highest precision is requested.
    added = jnp.einsum("lir,lro->lio", a, b, precision=jax.lax.Precision.HIGHEST)
    return (matrix + scale * added).astype(matrix.dtype)


def combine(trained: Any, frozen: Any) -> Llama:
    """Return the complete model, given ``trained`` and ``frozen`` of a ``TrainState``.

    If ``trained`` is of type ``Adapters``, the result is the model ``frozen`` with these adapters.
    Otherwise ``trained`` is the model and is returned.
    """
    return with_adapters(frozen, trained) if isinstance(trained, Adapters) else trained


def cast_model(model: Llama, dtype: Any) -> Llama:
    """Return ``model`` with all arrays cast to ``dtype``.

    Arrays that do not have this dtype yet are cast one at a time, and each original is deleted
    after its copy is made. Peak memory is therefore one model and one array.
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
    """Return ``model`` with arrays replaced by ShapeDtypeStructs of type ``dtype``.

    The ShapeDtypeStructs have no shardings.
    """
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), model)


def check_rank(rank: int, target: str, matrix: nnx.Param[jax.Array]) -> None:
    """Raise UserError if ``rank`` exceeds the maximum possible rank of the matrix ``target``."""
    largest = min(matrix.shape[1:])
    if rank > largest:
        raise UserError(
            f"lora.rank={rank} exceeds the rank of the matrix {target!r}, {largest}; set a smaller "
            "rank, or remove the matrix from lora.targets."
        )


def _adapter(config: LoraConfig, matrix: nnx.Param[jax.Array], key: jax.Array) -> Adapter:
    layers, rows, columns = matrix.shape
    _, row_axis, column_axis = matrix.get_metadata("axes")
    bound = rows**-0.5
    a = jax.random.uniform(key, (layers, rows, config.rank), minval=-bound, maxval=bound)
    return Adapter(
        nnx.Param(a, axes=("layers", row_axis, "rank")),
        nnx.Param(jnp.zeros((layers, config.rank, columns)), axes=("layers", "rank", column_axis)),
        config.scale,
    )
