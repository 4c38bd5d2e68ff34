"""The weights beside which adapters were trained: where they lie, and whether they are the same.

A checkpoint of a LoRA run holds adapters and notes one checksum for each array beside them.
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
"""Under which name a checkpoint notes the checksums."""


@dataclass(frozen=True)
class LoraBase:
    """What a checkpoint of adapters says of the weights that they go beside."""

    lora: LoraConfig
    source: str
    """The run's ``init_from``."""
    dtype: str
    """In which the run held the weights."""
    checksums: dict[str, int]
    """Checksums in that type, by path such as ``layers/query``."""

    def require(self, path: str, array: jax.Array) -> None:
        """Raise UserError unless ``array`` is, in the run's type, what the run held there."""
        if self.checksums.get(path) != int(checksum(array, self.dtype)):
            raise UserError(
                f"{self.source}: {path} is not what the adapters were trained beside. Put the "
                "weights back that were there, or start a new run."
            )

    def require_all(self, model: Any) -> None:
        """``require`` of every parameter of ``model``."""
        for path, parameter in _parameters(model).items():
            self.require(path, parameter)

    @contextlib.contextmanager
    def error_context(self, folder: str) -> Iterator[None]:
        """Around reading it: an error says why the run in ``folder`` needs it."""
        try:
            yield
        except UserError as error:
            raise UserError(
                f"{folder} holds adapters, and the weights beside them cannot be read: {error} "
                f"They lay at {self.source!r}: put them, or a link to them, there again."
            ) from error


def read_lora_base(about: dict[str, Any], where: str) -> LoraBase | None:
    """What ``about``, a checkpoint's, says of it; None where the checkpoint holds a whole model."""
    config = about["config"]
    if config.get("lora") is None:
        return None
    lora = from_dict(LoraConfig, config["lora"], f"{where}: lora")
    return LoraBase(lora, config["init_from"], config["compute"]["dtype"], about[NOTED])


def checksums(model: Any) -> dict[str, int]:
    """The checksum of every parameter of ``model`` (or of none), by its path."""
    sums = {path: checksum(x, str(x.dtype)) for path, x in _parameters(model).items()}
    return {path: int(value) for path, value in jax.device_get(sums).items()}


@partial(jax.jit, static_argnums=1)
def checksum(array: jax.Array, dtype: str) -> jax.Array:
    """Sum over places of a hash of the place and the bits there in ``dtype``, modulo 2^32.

    Integers add up to the same in any order, so slices may be summed wherever they lie. The hash is
    MurmurHash3's finaliser (Appleby 2011), one to one: no single value can change unseen.
    """
    array = array.astype(dtype)
    bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}"))
    place = jnp.zeros(array.shape, jnp.uint32)
    for dim in range(array.ndim):
        stride = math.prod(array.shape[dim + 1 :])
        place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, dim) * jnp.uint32(stride)
    mixed = bits.astype(jnp.uint32) + place * jnp.uint32(0x9E3779B1)
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
