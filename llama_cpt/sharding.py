"""The mesh, the table that places every named axis on it, and the shardings that follow."""

import math
from typing import Any

from flax import nnx
import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from llama_cpt.config import MeshConfig
from llama_cpt.errors import UserError

MESH_AXES = ("replica", "fsdp", "tensor")
BATCH_AXES = ("replica", "fsdp")

# Logical axis -> mesh axis. Parameters and activations (act_) have names of their own, because
# a parameter's embed is stored in slices and gathered for use while an activation's never is.
AXIS_RULES: dict[str, str | tuple[str, ...] | None] = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "norm": None,
    "rank": None,
    "microbatch": None,
    "batch": BATCH_AXES,
    "length": None,
    "act_embed": None,
    "act_heads": "tensor",
    "act_mlp": "tensor",
}


def make_mesh(config: MeshConfig, devices: Any = None) -> Mesh:
    """A mesh of axes (replica, fsdp, tensor) over ``devices`` (default: all of them)."""
    devices = np.asarray(jax.devices() if devices is None else devices)
    sizes = [config.replica, config.fsdp, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    if (
        sizes.count(-1) > 1
        or any(size < 1 and size != -1 for size in sizes)
        or (devices.size % known)
    ):
        raise UserError(
            f"mesh={sizes} does not divide {devices.size} devices; use -1 for one axis."
        )
    sizes = [devices.size // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != devices.size:
        raise UserError(
            f"mesh={sizes} uses {math.prod(sizes)} of {devices.size} devices; set one axis to -1."
        )
    # Auto: the compiler propagates shardings from the parameters and the few constraints given.
    return jax.make_mesh(
        tuple(sizes), MESH_AXES, devices=devices.flatten(), axis_types=(AxisType.Auto,) * 3
    )


def topology_mesh(config: MeshConfig, topology: str) -> Mesh:
    """A mesh over the chips of ``topology`` (``v5p:4x4x8``), which need not be here."""
    return make_mesh(config, topologies.get_topology_desc(topology, platform="tpu").devices)


def spec(*axes: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose dims have these logical names."""
    return PartitionSpec(*(AXIS_RULES[axis] if axis else None for axis in axes))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """``tree`` with a NamedSharding in place of each array.

    Every ``nnx.Param``, in a model, in gradients or in optimizer moments, is placed by its
    ``axes``; everything else (a step count) is replicated.
    """

    def place(leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable):
            return leaf.replace(NamedSharding(mesh, spec(*leaf.get_metadata("axes"))))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def with_shardings(abstract: Any, mesh: Mesh) -> Any:
    """``abstract`` (of ShapeDtypeStructs) with the sharding of each array filled in."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings(abstract, mesh),
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Place an activation by its logical axes; nothing where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes))
