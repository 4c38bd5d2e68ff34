"""Adapters of low rank beside a Llama's matrices (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from llama_cpt.config.schema import LoraConfig
from llama_cpt.model.linear import AdaptedMatrix, Adapter
from llama_cpt.model.llama import Llama
from llama_cpt.runtime.errors import UserError


class Adapters(nnx.Module):
    """An ``Adapter`` for each target, as its attribute: a pytree of its own, float32.

    A is uniform in +-1/sqrt(in), as PEFT draws it, and B is 0: at first nothing is added.
    """

    def __init__(self, config: LoraConfig, model: Llama, key: jax.Array) -> None:
        self.targets = config.targets
        keys = jax.random.split(key, len(config.targets))
        for target, part in zip(config.targets, keys, strict=True):
            check_rank(config.rank, target, getattr(model.layers, target))
            setattr(self, target, _adapter(config, getattr(model.layers, target), part))


def abstract_adapters(config: LoraConfig, model: Llama) -> Adapters:
    """Adapters of ShapeDtypeStructs. Raises UserError where the rank is too large."""
    return jax.eval_shape(lambda: Adapters(config, model, jax.random.key(0)))


def with_adapters(model: Llama, adapters: Adapters) -> Llama:
    """``model`` with the adapters beside its matrices; the arrays are those given."""
    adapted = _shallow_copy(model)
    for target in adapters.targets:
        matrix = getattr(model.layers, target)
        setattr(adapted.layers, target, AdaptedMatrix(matrix, getattr(adapters, target)))
    return adapted


def merge_adapters(model: Llama, adapters: Adapters) -> Llama:
    """``model`` with the adapters' products added into its matrices, which are given up for it."""
    result = _shallow_copy(model)
    for target in adapters.targets:
        matrix, adapter = getattr(model.layers, target), getattr(adapters, target)
        whole = merge_matrix(matrix[...], adapter.a[...], adapter.b[...], adapter.scale)
        whole = jax.device_put(whole, matrix[...].sharding)
        matrix[...].delete()
        setattr(result.layers, target, matrix.replace(whole))
    return result


@jax.jit
def merge_matrix(
    matrix: Float[Array, "layers in out"],
    a: Float[Array, "layers in rank"],
    b: Float[Array, "layers rank out"],
    scale: float | Float[Array, ""],
) -> Float[Array, "layers in out"]:
    """W + scale A B, in the matrix's type."""
    # Highest: float32 operands are otherwise rounded to bfloat16 on a TPU.
    added = jnp.einsum("lir,lro->lio", a, b, precision=jax.lax.Precision.HIGHEST)
    return (matrix + scale * added).astype(matrix.dtype)


def combine(trained: Any, frozen: Any) -> Llama:
    """The model of a state: ``trained`` itself, or ``frozen`` with the adapters ``trained``."""
    return with_adapters(frozen, trained) if isinstance(trained, Adapters) else trained


def cast_model(model: Llama, dtype: Any) -> Llama:
    """``model`` in another type, array after array; arrays of another type are given up for it."""
    dtype = jnp.dtype(dtype)

    def cast(leaf: jax.Array) -> jax.Array:
        if leaf.dtype == dtype:
            return leaf
        result = jax.jit(lambda x: x.astype(dtype), out_shardings=leaf.sharding)(leaf)
        leaf.delete()
        return result

    return jax.tree.map(cast, model)


def cast_abstract(model: Llama, dtype: Any) -> Llama:
    """``cast_model`` of an abstract model, without shardings."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), model)


def check_rank(rank: int, target: str, matrix: nnx.Param) -> None:
    """Refuse factors that are larger than what they stand for."""
    most = min(matrix.shape[1:])
    if rank > most:
        raise UserError(
            f"lora.rank={rank} is more than the matrix {target!r} has, {most}; set a smaller one "
            "or leave it out of lora.targets."
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


def _shallow_copy(model: Llama) -> Llama:
    return jax.tree.map(lambda leaf: leaf, model, is_leaf=lambda node: isinstance(node, nnx.Param))
