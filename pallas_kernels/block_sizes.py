"""Block sizes of the attention kernels, by kind of TPU."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class BlockSizes:
    """Block sizes of the attention kernels.

    All numbers of queries and keys must be multiples of 128. ``forward_queries`` and
    ``backward_queries`` must divide ``tile``.
    """

    tile: int = 512
    """Number of queries and number of keys per tile. A step of the grid processes one tile."""
    forward_queries: int = 128
    """Number of queries per part of a tile in the forward kernel. The scores of a part are computed
    by one matrix product."""
    forward_ahead: int = 1
    """Number of parts by which the forward kernel computes scores ahead of their exponentials."""
    backward_queries: int = 128
    """Number of queries per part of a tile in the backward kernel."""
    backward_ahead: int = 0
    """Number of parts by which the backward kernel computes scores ahead of their exponentials."""
    backward_keys: int = 8192
    """Maximum number of keys whose gradients the backward kernel accumulates in VMEM, if the key
    heads of a grid step have a total width of 128. For a larger width, the maximum is
    proportionally smaller. For a longer row, the kernel is called several times."""


# The sizes were chosen by the length of the schedule that the TPU compiler reports
# (docs/notes/kernels.md). On v5, a systolic array of 128 x 128 multiplies 128 queries at a time,
# and parts of 128 queries keep most intermediate values in registers. On v6e and TPU7x, an array
# of 256 x 256 would be half idle with 128 queries.
_WIDE = BlockSizes(forward_queries=256, forward_ahead=3, backward_queries=256)
OF_DEVICE_KIND = {
    "TPU v5 lite": BlockSizes(),
    "TPU v5": BlockSizes(backward_queries=256),
    "TPU v6 lite": _WIDE,
    "TPU7x": _WIDE,
}


def current_block_sizes() -> BlockSizes:
    """Return the block sizes for the devices of the current mesh.

    Without a mesh, returns the block sizes for the default device. For a device that is not in
    ``OF_DEVICE_KIND``, returns the defaults of ``BlockSizes``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    kind = (device or jax.devices()[0]).device_kind
    return OF_DEVICE_KIND.get(kind, BlockSizes())
