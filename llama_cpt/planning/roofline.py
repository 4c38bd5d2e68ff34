"""The least time that a step can take on a chip, by each of what it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

from llama_cpt.hardware.chips import Chip
from llama_cpt.planning.collectives import SLICES_AXIS, Collective

# Model FLOPs utilisation that published TPU runs of Llama-3 reach, causal attention counted once
# as in model_flops_per_token: v6e 0.40 (8B) to 0.47 (70B), v5p 0.68 (405B), from
# AI-Hypercomputer's tpu-recipes.
MFU_RANGE = (0.40, 0.60)


@dataclass(frozen=True)
class Roofline:
    """Seconds a step, each as if nothing else took any time."""

    matrix: float
    hbm: float
    ici: float
    dcn: float

    @property
    def seconds(self) -> dict[str, float]:
        """By what is needed."""
        return {"matrix": self.matrix, "HBM": self.hbm, "ICI": self.ici, "DCN": self.dcn}

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self.seconds, key=self.seconds.get)

    @property
    def overlapped_seconds(self) -> float:
        """No step is faster, were all of it done at once."""
        return max(self.seconds.values())

    @property
    def serial_seconds(self) -> float:
        """Nothing done at once."""
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
    """Of one device's ``flops``, ``hbm`` bytes and collectives.

    Links between chips are taken as all busy: a slice without wrap-around, or an axis that lies
    along some of the links only, takes longer.
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
    """Bytes of a collective that a device receives from other slices.

    ``replica`` is the axis across slices. Where other axes are crossed with it, each device of a
    slice brings its part, once the slice has settled its own.
    """
    if slices == 1 or SLICES_AXIS not in one.axes:
        return 0.0
    within = math.prod(mesh[axis] for axis in one.axes if axis != SLICES_AXIS)
    return one.bytes / within
