"""A check that the base weights of a LoRA run have not changed since the run.

A checkpoint of a LoRA run holds only adapters. The checkpoint's metadata contains the path or name
of the base weights, and one checksum per array of the base weights.
"""

from collections.abc import Generator
import contextlib
from dataclasses import dataclass
from functools import partial
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from llama_cpt.config.fields import from_dict
from llama_cpt.config.schema import LoraConfig
from llama_cpt.runtime.errors import UserError

NOTED = "trained_beside"
"""The key of the checksums in a checkpoint's metadata."""


@dataclass(frozen=True)
class LoraBase:
    """A description of a LoRA run's base weights, from the metadata of a checkpoint."""

    lora: LoraConfig
    source: str
    """The run's ``init_from``, which names the folder or model with the base weights."""
    dtype: str
    """The dtype in which the run kept the base weights in memory."""
    checksums: dict[str, int]
    """The checksum of each array after conversion to ``dtype``, by path (``layers/query``)."""

    def require(self, path: str, array: jax.Array) -> None:
        """Raise UserError if ``array`` does not have the checksum of the parameter ``path``."""
        if self.checksums.get(path) != int(checksum(array, self.dtype)):
            raise UserError(
                f"{self.source}: {path} differs from the weights that the adapters were trained "
                "on. Restore those weights, or start a new run."
            )

    def require_all(self, model: Any) -> None:
        """Raise UserError if any parameter of ``model`` does not have its checksum."""
        for path, parameter in _parameters(model).items():
            self.require(path, parameter)

    @contextlib.contextmanager
    def error_context(self, folder: str) -> Generator[None]:
        """Context manager that adds context to a UserError about the base weights.

        The added text states that the run in ``folder`` holds adapters, and names the path from
        which the run loaded the base weights.
        """
        try:
            yield
        except UserError as error:
            raise UserError(
                f"{folder} holds adapters, and their base weights cannot be read: {error} "
                f"The base weights were at {self.source!r}; restore them at this path, or create a "
                "link to them."
            ) from error


def read_lora_base(metadata: dict[str, Any], where: str) -> LoraBase | None:
    """Return the description of the base weights in a checkpoint's ``metadata``.

    The result is None if the checkpoint holds a whole model. ``where`` names the checkpoint in
    error messages.
    """
    config = metadata["config"]
    if config.get("lora") is None:
        return None
    lora = from_dict(LoraConfig, config["lora"], f"{where}: lora")
    return LoraBase(lora, config["init_from"], config["compute"]["dtype"], metadata[NOTED])


def checksums(model: Any) -> dict[str, int]:
    """Return the checksum of each parameter of ``model`` in the parameter's dtype, by path."""
    sums = {path: checksum(x, str(x.dtype)) for path, x in _parameters(model).items()}
    return {path: int(value) for path, value in jax.device_get(sums).items()}


@partial(jax.jit, static_argnums=1)
def checksum(array: jax.Array, dtype: str) -> jax.Array:
    """Return a 32-bit checksum of ``array`` after conversion to ``dtype``.

    Each element's position and bits are hashed, and the hashes are summed modulo 2**32. An integer
    sum does not depend on the order of its terms, so each device can sum its own slice. The hash is
    the finalizer of MurmurHash3 (Appleby 2011). The finalizer is a bijection, so a change of a
    single value always changes the checksum.
    """
    array = array.astype(dtype)
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
    position = jnp.zeros(array.shape, jnp.uint32)
    for dim in range(array.ndim):
        stride = math.prod(array.shape[dim + 1 :])
        position += jax.lax.broadcasted_iota(jnp.uint32, array.shape, dim) * jnp.uint32(stride)
    # 0x9E3779B1, a prime near 2^32 divided by the golden ratio, spreads consecutive positions.
    # The shifts and factors below are those of fmix32 in MurmurHash3.
    mixed = bits.astype(jnp.uint32) + position * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _parameters(model: Any) -> dict[str, jax.Array]:
    parameters = jax.tree_util.tree_leaves_with_path(
        model, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): parameter[...]
        for path, parameter in parameters
    }
