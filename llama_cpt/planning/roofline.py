"""Roofline of a step: the minimum time of its work on each resource of a chip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

from llama_cpt.hardware.chips import Chip
from llama_cpt.planning.collectives import SLICES_AXIS, Collective

# Range of the model FLOPs utilization (MFU) for which a plan prints throughput. Published TPU runs
# of Llama 3 have an MFU of 0.40 (8B) to 0.47 (70B) on v6e, and 0.68 (405B) on v5p
# (github.com/AI-Hypercomputer/tpu-recipes), if attention is counted as in model_flops_per_token.
MFU_RANGE = (0.40, 0.60)


@dataclass(frozen=True)
class Roofline:
    """Seconds per step that each resource of a chip needs at the rates in the chip's data sheet."""

    matrix: float
    """Seconds of matrix products on the matrix units (MXU)."""
    hbm: float
    """Seconds of reads and writes of the chip's memory (HBM)."""
    ici: float
    """Seconds of transfers over the links between the chips of a slice (ICI)."""
    dcn: float
    """Seconds of transfers over the data-center network between slices (DCN)."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per step, by the printed name of the resource."""
        return {"matrix": self.matrix, "HBM": self.hbm, "ICI": self.ici, "DCN": self.dcn}

    @property
    def bound(self) -> str:
        """Name of the resource that takes the most time."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def overlapped_seconds(self) -> float:
        """Seconds per step if all resources work in parallel: a lower bound."""
        return max(self.seconds.values())

    @property
    def serial_seconds(self) -> float:
        """Seconds per step if only one resource works at a time."""
        return sum(self.seconds.values())


def roofline(
    chip: Chip,
    *,
    flops: float,
    hbm: float,
    sent: Sequence[Collective],
    mesh: Mapping[str, int],
    slices: int,
) -> Roofline:
    """Return the roofline of one device for its work in a step.

    ``flops`` is the number of operations at the bfloat16 rate, ``hbm`` is the memory traffic in
    bytes, and ``sent`` contains the collectives. ``slices`` is the number of TPU slices. The ICI
    time assumes that a collective uses all links of a chip. Without wrap-around links, or if a mesh
    axis uses only some of the links, a collective takes longer.
    """
    dcn = sum(across_slices(one, mesh, slices) for one in sent)
    ici = sum(one.bytes for one in sent if one.axes != (SLICES_AXIS,) or slices == 1)
    return Roofline(
        flops / chip.peak_flops,
        hbm / chip.memory_bandwidth,
        ici / chip.ici_bandwidth,
        dcn / chip.dcn_bandwidth,
    )


def across_slices(one: Collective, mesh: Mapping[str, int], slices: int) -> float:
    """Return the bytes per step that a device receives from other slices in collective ``one``.

    A collective crosses slices if it crosses the mesh axis ``replica`` and there are several
    slices. If the collective also crosses axes within a slice, it is hierarchical: it first runs
    within each slice, and then each device exchanges its part of the result with other slices.
    """
    if slices == 1 or SLICES_AXIS not in one.axes:
        return 0.0
    within = math.prod(mesh[axis] for axis in one.axes if axis != SLICES_AXIS)
    return one.bytes / within
