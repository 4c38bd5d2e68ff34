"""Base weights of a LoRA run: their location, and a check that they have not changed.

A checkpoint of a LoRA run holds only adapters. Its metadata records one checksum for each array of
the base weights that they were trained on.
"""

from collections.abc import Iterator
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
"""Key of the checksums in a checkpoint's metadata."""


@dataclass(frozen=True)
class LoraBase:
    """The base weights of a checkpoint of adapters, as its metadata describes them."""

    lora: LoraConfig
    source: str
    """The ``init_from`` of the run."""
    dtype: str
    """Type in which the run held the weights."""
    checksums: dict[str, int]
    """Checksums of the arrays in that type, by path such as ``layers/query``."""

    def require(self, path: str, array: jax.Array) -> None:
        """Raise UserError unless ``array``, in the run's type, equals the array in the run."""
        if self.checksums.get(path) != int(checksum(array, self.dtype)):
            raise UserError(
                f"{self.source}: {path} differs from the weights that the adapters were trained "
                "on. Restore those weights, or start a new run."
            )

    def require_all(self, model: Any) -> None:
        """Check every parameter of ``model`` as in ``require``."""
        for path, parameter in _parameters(model).items():
            self.require(path, parameter)

    @contextlib.contextmanager
    def error_context(self, folder: str) -> Iterator[None]:
        """Context manager that adds to a UserError why the run in ``folder`` needs the base."""
        try:
            yield
        except UserError as error:
            raise UserError(
                f"{folder} holds adapters, and their base weights cannot be read: {error} "
                f"They were at {self.source!r}; restore them, or a link to them, there."
            ) from error


def read_lora_base(metadata: dict[str, Any], where: str) -> LoraBase | None:
    """Return the base weights in a checkpoint's metadata; None if it holds a whole model.

    ``where`` names the checkpoint in error messages.
    """
    config = metadata["config"]
    if config.get("lora") is None:
        return None
    lora = from_dict(LoraConfig, config["lora"], f"{where}: lora")
    return LoraBase(lora, config["init_from"], config["compute"]["dtype"], metadata[NOTED])


def checksums(model: Any) -> dict[str, int]:
    """Return the checksum of every parameter of ``model`` by path; empty if it has none."""
    sums = {path: checksum(x, str(x.dtype)) for path, x in _parameters(model).items()}
    return {path: int(value) for path, value in jax.device_get(sums).items()}


@partial(jax.jit, static_argnums=1)
def checksum(array: jax.Array, dtype: str) -> jax.Array:
    """Return the sum over positions of a hash of the position and its bits in ``dtype``, mod 2^32.

    An integer sum does not depend on the order, so each device can sum its own slice. The hash is
    the finalizer of MurmurHash3 (Appleby 2011), a bijection: a change of a single value is always
    detected.
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
