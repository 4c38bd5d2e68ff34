"""Roofline of a step: the least time that each resource of a chip needs for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

from llama_cpt.hardware.chips import Chip
from llama_cpt.planning.collectives import SLICES_AXIS, Collective

# Model FLOPs utilization of published TPU runs of Llama 3, causal attention counted as in
# model_flops_per_token: v6e 0.40 (8B) to 0.47 (70B), v5p 0.68 (405B), from
# github.com/AI-Hypercomputer/tpu-recipes.
MFU_RANGE = (0.40, 0.60)


@dataclass(frozen=True)
class Roofline:
    """Seconds per step of each resource, as if the others took no time."""

    matrix: float
    hbm: float
    ici: float
    dcn: float

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per step by resource."""
        return {"matrix": self.matrix, "HBM": self.hbm, "ICI": self.ici, "DCN": self.dcn}

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(self.seconds, key=self.seconds.get)

    @property
    def overlapped_seconds(self) -> float:
        """Lower bound on the seconds per step: everything overlaps."""
        return max(self.seconds.values())

    @property
    def serial_seconds(self) -> float:
        """Seconds per step if nothing overlaps."""
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
    """Return the roofline of one device's ``flops``, ``hbm`` bytes and collectives ``sent``.

    The time on the links assumes that all links of a chip are in use; a slice without wrap-around,
    or a mesh axis along some of the links only, takes longer.
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
    """Return the bytes of a collective that a device receives from other slices.

    ``replica`` is the mesh axis across slices. If the collective also crosses other axes, it is
    hierarchical: it runs inside each slice first, and each device then exchanges its own part.
    """
    if slices == 1 or SLICES_AXIS not in one.axes:
        return 0.0
    within = math.prod(mesh[axis] for axis in one.axes if axis != SLICES_AXIS)
    return one.bytes / within
