"""How large a piece of the scores the attention kernels take at a time, by chip."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class BlockSizes:
    """Multiples of 128, each of which divides the one above it."""

    tile: int = 512
    """Queries and keys of a tile: what a step of the grid fetches and computes."""
    forward_queries: int = 128
    """Queries whose scores with a tile's keys are in flight at a time, going forward."""
    forward_ahead: int = 1
    """Such parts whose scores are computed ahead of their exponentials, going forward."""
    backward_queries: int = 128
    """Queries whose products with a tile's keys are in flight at a time, going backward."""
    backward_ahead: int = 0
    """Such parts whose scores are computed ahead, going backward."""
    backward_keys: int = 8192
    """Keys whose gradients are held in VMEM: a pass over the tiles for each so many keys."""


# By the TPU compiler's schedule (docs/notes/kernels.md). A systolic array of 128 x 128 takes 128 queries
# at a time, and what is in flight stays near the registers; one of 256 x 256 would idle on them.
_WIDE = BlockSizes(forward_queries=256, forward_ahead=3, backward_queries=256)
OF_DEVICE_KIND = {
    "TPU v5 lite": BlockSizes(),
    "TPU v5": BlockSizes(backward_queries=256),
    "TPU v6 lite": _WIDE,
    "TPU7x": _WIDE,
}


def current_block_sizes() -> BlockSizes:
    """The sizes for the devices of the current mesh, else for the default device."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    kind = (device or jax.devices()[0]).device_kind
    return OF_DEVICE_KIND.get(kind, BlockSizes())
