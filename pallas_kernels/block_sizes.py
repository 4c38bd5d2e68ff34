"""Block sizes of the attention kernels for each kind of TPU."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class BlockSizes:
    """Sizes in tokens, all multiples of 128; a number of queries per part divides ``tile``."""

    tile: int = 512
    """Number of queries, and of keys, per tile: what a step of the grid fetches and computes."""
    forward_queries: int = 128
    """Number of queries per part in the forward kernel; a part's scores are computed together."""
    forward_ahead: int = 1
    """Number of parts whose scores the forward kernel computes ahead of their exponentials."""
    backward_queries: int = 128
    """Number of queries per part in the backward kernel."""
    backward_ahead: int = 0
    """Number of parts whose scores the backward kernel computes ahead."""
    backward_keys: int = 8192
    """Number of keys whose gradients lie in VMEM; a longer row takes several passes."""


# Chosen by the schedule that the TPU compiler reports (docs/notes/kernels.md). A systolic array of
# 128 x 128 takes 128 queries at a time, and small parts keep most intermediate values in registers.
# An array of 256 x 256 would be half idle on 128 queries.
_WIDE = BlockSizes(forward_queries=256, forward_ahead=3, backward_queries=256)
OF_DEVICE_KIND = {
    "TPU v5 lite": BlockSizes(),
    "TPU v5": BlockSizes(backward_queries=256),
    "TPU v6 lite": _WIDE,
    "TPU7x": _WIDE,
}


def current_block_sizes() -> BlockSizes:
    """Return the sizes for the devices of the current mesh, or for the default device.

    Kinds of device that are not in the table get the defaults of ``BlockSizes``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    kind = (device or jax.devices()[0]).device_kind
    return OF_DEVICE_KIND.get(kind, BlockSizes())
