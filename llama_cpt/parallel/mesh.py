"""The device mesh, the table that maps logical axes to mesh axes, and shardings made from it."""

import math
from typing import Any

from flax import nnx
import jax
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from llama_cpt.config.schema import MeshConfig
from llama_cpt.runtime.errors import UserError

MESH_AXES = ("replica", "fsdp", "context", "tensor")
BATCH_AXES = ("replica", "fsdp")
"""The mesh axes over which rows are distributed."""
TOKEN_AXES = (*BATCH_AXES, "context")
"""The mesh axes over which tokens are distributed, and over which a loss is summed."""

# Logical axis -> mesh axis. Parameters and activations (act_) have separate names: the embed axis
# of a parameter is stored in slices and gathered for use, and that of an activation is never cut.
# Parameters are sliced over ``context`` too, because its devices hold the same weights.
AXIS_RULES: dict[str, str | tuple[str, ...] | None] = {
    "layers": None,
    "vocab": "tensor",
    "embed": ("fsdp", "context"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "norm": None,
    "rank": None,
    "microbatch": None,
    "batch": BATCH_AXES,
    "length": "context",
    "act_embed": None,
    "act_heads": "tensor",
    "act_mlp": "tensor",
}


def make_mesh(config: MeshConfig, devices: Any = None) -> Mesh:
    """Return a mesh with axes (replica, fsdp, context, tensor) over ``devices`` (default: all).

    If the devices belong to several slices, ``replica`` must be their number, because all other
    axes lie within a slice. Raises UserError if the config does not fit the devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).flatten()
    sizes = _axis_sizes(config, devices.size)
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(_slice(device), []).append(device)
    if len(slices) > 1 and sizes[0] != len(slices):
        raise UserError(
            f"mesh.replica={sizes[0]} on {len(slices)} slices: set mesh.replica={len(slices)}, "
            "because only the gradients of replicas may cross between slices."
        )
    copies = sizes[0] // len(slices)
    # Neighbors in the mesh are neighbors on the chips' links, even if a mesh axis takes only a part
    # of an axis of the torus.
    parts = [_arrange((copies, *sizes[1:]), slices[number]) for number in sorted(slices)]
    # Auto: the compiler propagates shardings from the parameters and the few constraints given.
    return Mesh(np.concatenate(parts), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _arrange(sizes: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """Return ``devices`` as an array of ``sizes`` that follows the links of the chips."""
    try:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, TypeError, ValueError):
        # JAX raises one of these if a side of the slice has a factor of 5 or 7.
        axes = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        raise UserError(
            f"mesh({axes}) cannot be laid along the links of these {len(devices)} devices: set "
            "another mesh, or use a slice whose sides are 2, 4, 8, 12 or 16."
        ) from None


def _axis_sizes(config: MeshConfig, count: int) -> list[int]:
    """Return the size of every mesh axis over ``count`` devices, -1 replaced by what remains."""
    named = {axis: getattr(config, axis) for axis in MESH_AXES}
    sizes = list(named.values())
    shown = "mesh(" + ", ".join(f"{axis}={size}" for axis, size in named.items()) + ")"
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes) or count % known:
        raise UserError(f"{shown} does not divide {count} devices; use -1 for one axis.")
    sizes = [count // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != count:
        raise UserError(f"{shown} uses {math.prod(sizes)} of {count} devices; set one axis to -1.")
    return sizes


def _slice(device: Any) -> int:
    """Return the number of the device's slice."""
    # Devices of a described topology have the attribute only if there are several slices. The slice
    # index of a GPU is that of its host, and hosts with GPUs form no slices.
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def topology_mesh(config: MeshConfig, topology: str, slices: int = 1) -> Mesh:
    """Return a mesh over ``topology_devices``."""
    return make_mesh(config, topology_devices(topology, slices))


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
    """Return the devices of ``slices`` of ``topology`` (``v5p:4x4x8``); no TPU is needed.

    The description includes the wrap-around links of the slice. With three sides these exist if
    every side is a multiple of 4 (whole cubes of 4 x 4 x 4), and with two along each side of 16, a
    full side of a v5e or v6e pod. Without them the compiler turns gathers along all chips into
    sums, which move twice the bytes.
    """
    sides = [int(side) for side in topology.partition(":")[2].split("x")]
    if len(sides) == 3:
        wrap = [all(side % 4 == 0 for side in sides)] * 3
    else:
        wrap = [*(side == 16 for side in sides), False]
    described = topologies.get_topology_desc(
        topology, platform="tpu", num_slices=slices, wrap=tuple(wrap)
    )
    return described.devices


def partition_spec(*axes: str | None) -> PartitionSpec:
    """Return the PartitionSpec of an array whose dimensions have these logical names."""
    return PartitionSpec(*(AXIS_RULES[axis] if axis else None for axis in axes))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Return ``tree`` with a NamedSharding in place of each array.

    Every ``nnx.Param``, in a model, in gradients or in optimizer moments, is placed by its
    ``axes``; everything else, such as a step count, is replicated.
    """

    def place(leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable):
            return leaf.replace(NamedSharding(mesh, partition_spec(*leaf.get_metadata("axes"))))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def with_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Return ``abstract``, a tree of ShapeDtypeStructs, with the sharding of each array."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings(abstract, mesh),
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an activation's sharding by its logical axes; without a mesh, return it."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(*axes))
