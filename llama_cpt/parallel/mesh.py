"""The mesh, the table that places every named axis on it, and the shardings that follow."""

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
TOKEN_AXES = (*BATCH_AXES, "context")

# Logical axis -> mesh axis. Parameters and activations (act_) have names of their own, because
# a parameter's embed is stored in slices and gathered for use while an activation's never is.
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
    """A mesh of axes (replica, fsdp, context, tensor) over ``devices`` (default: all of them).

    Where they are of several slices, ``replica`` is their number: all other axes lie within one.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).flatten()
    sizes = _sizes(config, devices.size)
    slices: dict[int, list] = {}
    for device in devices:
        slices.setdefault(_slice(device), []).append(device)
    if len(slices) > 1 and sizes[0] != len(slices):
        raise UserError(
            f"mesh.replica={sizes[0]} on {len(slices)} slices: set mesh.replica={len(slices)}, for "
            "only the replicas' gradients may cross from slice to slice."
        )
    copies = sizes[0] // len(slices)
    # Neighbours in the mesh are neighbours on the chips' links, though an axis of the links be cut.
    parts = [_laid_out((copies, *sizes[1:]), slices[number]) for number in sorted(slices)]
    # Auto: the compiler propagates shardings from the parameters and the few constraints given.
    return Mesh(np.concatenate(parts), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _laid_out(sizes: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, TypeError, ValueError):
        # Where a side of the slice has a factor of 5 or 7 it fails in one of many ways.
        told = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        raise UserError(
            f"mesh({told}) cannot be laid along the links of these {len(devices)} devices: take "
            "another mesh, or a slice whose sides are 2, 4, 8, 12 or 16."
        ) from None


def _sizes(config: MeshConfig, count: int) -> list[int]:
    """Of every mesh axis, over ``count`` devices."""
    named = {axis: getattr(config, axis) for axis in MESH_AXES}
    sizes = list(named.values())
    told = "mesh(" + ", ".join(f"{axis}={size}" for axis, size in named.items()) + ")"
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes) or count % known:
        raise UserError(f"{told} does not divide {count} devices; use -1 for one axis.")
    sizes = [count // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != count:
        raise UserError(f"{told} uses {math.prod(sizes)} of {count} devices; set one axis to -1.")
    return sizes


def _slice(device: Any) -> int:
    # Chips that are not here say theirs only where there are several. A GPU's is its host's.
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def topology_mesh(config: MeshConfig, topology: str, slices: int = 1) -> Mesh:
    """A mesh over ``topology_devices``."""
    return make_mesh(config, topology_devices(topology, slices))


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
    """Of ``slices`` of ``topology`` (``v5p:4x4x8``), whose chips need not be here.

    With the links from end to end that they have: where all of three sides are of whole cubes
    (4 x 4 x 4), or a side is one of v5e's and v6e's pods (16). Without, the compiler takes gathers
    along all chips for sums, which move twice the bytes.
    """
    sides = [int(side) for side in topology.partition(":")[2].split("x")]
    if len(sides) == 3:
        around = [all(side % 4 == 0 for side in sides)] * 3
    else:
        around = [*(side == 16 for side in sides), False]
    described = topologies.get_topology_desc(
        topology, platform="tpu", num_slices=slices, wrap=tuple(around)
    )
    return described.devices


def partition_spec(*axes: str | None) -> PartitionSpec:
    """The PartitionSpec of an array whose dims have these logical names."""
    return PartitionSpec(*(AXIS_RULES[axis] if axis else None for axis in axes))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """``tree`` with a NamedSharding in place of each array.

    Every ``nnx.Param``, in a model, in gradients or in optimizer moments, is placed by its
    ``axes``; everything else (a step count) is replicated.
    """

    def place(leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable):
            return leaf.replace(NamedSharding(mesh, partition_spec(*leaf.get_metadata("axes"))))
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
    return jax.lax.with_sharding_constraint(x, partition_spec(*axes))
