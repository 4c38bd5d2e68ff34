"""The device mesh, the mapping from logical axes to mesh axes, and the resulting shardings."""

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
"""Names of the mesh axes over which the rows of a batch are partitioned."""
TOKEN_AXES = (*BATCH_AXES, "context")
"""Names of the mesh axes over which the tokens of a batch are partitioned. Losses are summed over
these axes."""

# Maps a logical axis to a mesh axis. Activations have separate names with the prefix act_, because
# the embed axis of a parameter is partitioned in storage and gathered for use, while the embed axis
# of an activation is never partitioned. Parameters are also partitioned over ``context``, because
# the devices on that axis use the same weights.
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
    """Return a mesh with axes (replica, fsdp, context, tensor) over ``devices``.

    ``devices`` defaults to ``jax.devices()``. If the devices belong to several TPU slices, the size
    of ``replica`` must be the number of slices, because all other axes lie within a slice. Raises
    UserError if the config does not fit the devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).flatten()
    sizes = _axis_sizes(config, devices.size)
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(_slice(device), []).append(device)
    if len(slices) > 1 and sizes[0] != len(slices):
        raise UserError(
            f"mesh.replica={sizes[0]} on {len(slices)} slices: set mesh.replica={len(slices)}, "
            "because only the gradients of replicas may cross between slices."
        )
    copies = sizes[0] // len(slices)
    # Within a slice, devices that are adjacent in the mesh are connected by a link, even if a mesh
    # axis covers only a part of an axis of the torus.
    parts = [_arrange((copies, *sizes[1:]), slices[number]) for number in sorted(slices)]
    # With AxisType.Auto, the compiler propagates shardings from the parameters and from the calls
    # of ``constrain``.
    return Mesh(np.concatenate(parts), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _arrange(sizes: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """Return ``devices`` as an array of shape ``sizes`` in which adjacent devices are linked chips.

    Raises UserError if JAX has no such assignment for the shape of the slice.
    """
    try:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, TypeError, ValueError):
        # JAX raises one of these errors if, for example, a side of the slice is a multiple of 5
        # or 7.
        axes = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        raise UserError(
            f"mesh({axes}) cannot be laid along the links of these {len(devices)} devices: set a "
            "different mesh, or use a slice whose sides are 2, 4, 8, 12 or 16."
        ) from None


def _axis_sizes(config: MeshConfig, count: int) -> list[int]:
    """Return the sizes of the mesh axes, with -1 replaced so that their product is ``count``.

    Raises UserError if the sizes do not fit ``count`` devices.
    """
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
    """Return the index of the TPU slice that ``device`` belongs to; 0 for CPUs and GPUs."""
    # A device of a topology description has a ``slice_index`` only if there are several slices. On
    # GPUs, ``slice_index`` is the index of the host, which is irrelevant here.
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def topology_mesh(config: MeshConfig, topology: str, slices: int = 1) -> Mesh:
    """Return a mesh over the devices of ``topology_devices(topology, slices)``."""
    return make_mesh(config, topology_devices(topology, slices))


def topology_devices(topology: str, slices: int = 1) -> list[Any]:
    """Return device descriptions for ``slices`` TPU slices of a topology such as ``v5p:4x4x8``.

    The function needs libtpu but no TPU. The descriptions include wrap-around links. A slice with
    three sides has wrap-around links if every side is a multiple of 4, because it then consists of
    whole cubes of 4 x 4 x 4 chips. A slice with two sides has wrap-around links along each side of
    16 chips, which is the full side of a v5e or v6e pod. If the descriptions lacked these links,
    the compiler would replace all-gathers over all chips with sums, which move twice the bytes.
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
    """Return the PartitionSpec of an array, given the logical axis of each dimension.

    A dimension with logical axis None is not partitioned.
    """
    return PartitionSpec(*(AXIS_RULES[axis] if axis else None for axis in axes))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """Return ``tree`` with every array replaced by its NamedSharding.

    ``tree`` is a model, its gradients, or a state with optimizer moments. The sharding of an
    ``nnx.Param`` follows from the logical axes in its metadata ``axes``. All other arrays, such as
    a step count, are replicated.
    """

    def place(leaf: Any) -> Any:
        if isinstance(leaf, nnx.Variable):
            return leaf.replace(NamedSharding(mesh, partition_spec(*leaf.get_metadata("axes"))))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(place, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def with_shardings(abstract: Any, mesh: Mesh) -> Any:
    """Return ``abstract``, a pytree of ShapeDtypeStructs, with their shardings (``shardings``)."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings(abstract, mesh),
    )


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain the sharding of activation ``x``, given the logical axis of each dimension.

    Returns ``x`` unchanged if there is no current mesh.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(*axes))
