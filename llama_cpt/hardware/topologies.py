"""TPU slices by the names people know and by shape: ``v5p-256`` is ``v5p:4x4x8``."""

from dataclasses import dataclass
import itertools
import math
import re

from llama_cpt.hardware.chips import CHIPS, Chip
from llama_cpt.runtime.errors import UsageError, UserError

FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Below a cube of 4 x 4 x 4 chips; above it every side is a multiple of 4.
SUBCUBE_SHAPES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclass(frozen=True)
class Family:
    """One version's slices (cloud.google.com/tpu/docs, configurations of each version)."""

    kind: str
    """``jax.Device.device_kind``."""
    pod: tuple[int, ...]
    """Chips along each side of the whole; no slice is longer."""
    counted: int
    """What a name such as v5p-256 counts for each chip: cores, or chips."""
    devices: int
    """That JAX counts for each chip."""
    max_chips: int


FAMILIES = {
    "v5e": Family("TPU v5 lite", (16, 16), 1, 1, 256),
    "v5p": Family("TPU v5", (16, 20, 28), 2, 1, 6144),
    "v6e": Family("TPU v6 lite", (16, 16), 1, 1, 256),
    "tpu7x": Family("TPU7x", (16, 24, 24), 2, 2, 9216),
}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "ironwood": "tpu7x"}


@dataclass(frozen=True)
class Topology:
    """``slices`` slices of one shape, joined by the data-centre network."""

    family: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def text(self) -> str:
        """One slice as the compiler names it: ``v5p:4x4x8``."""
        return f"{self.family}:{'x'.join(map(str, self.shape))}"

    @property
    def name(self) -> str:
        """One slice as people name it: ``v5p-256``."""
        return f"{self.family}-{math.prod(self.shape) * FAMILIES[self.family].counted}"

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Of all slices, as JAX counts them."""
        return self.chips * FAMILIES[self.family].devices

    @property
    def chip(self) -> Chip:
        """One device of it."""
        return CHIPS[FAMILIES[self.family].kind]


def find_topology(text: str, slices: int = 1) -> Topology:
    """``v5p:4x4x8`` or ``v5p-256`` as a topology; UserError, with what is nearest, for no such."""
    if slices < 1:
        raise UsageError(f"--slices {slices}: at least 1.")
    match = re.fullmatch(r"([a-z]\w*?)(?:[:](\d+(?:x\d+)*)|-(\d+))", text.strip().lower())
    if not match:
        raise UsageError(f"--topology {text}: write a shape, v5p:4x4x8, or a name, v5p-256.")
    family = ALIASES.get(match[1], match[1])
    if family not in FAMILIES:
        raise UserError(
            f"--topology {text}: no TPU {match[1]!r} here; known: {', '.join(FAMILIES)}."
        )
    if match[2]:
        shape = tuple(map(int, match[2].split("x")))
        chips = math.prod(shape)
    else:
        shape, chips = None, int(match[3]) / FAMILIES[family].counted
    shapes = shapes_of(family)
    if shape is None:
        shape = next((one for one in shapes if math.prod(one) == chips), None)
    if shape not in shapes:
        near = sorted(shapes, key=lambda one: abs(math.log(math.prod(one) / max(chips, 0.5))))[:2]
        told = (Topology(family, one) for one in sorted(near, key=math.prod))
        nearest = " or ".join(f"{one.text} ({one.name}, {one.chips} chips)" for one in told)
        raise UsageError(f"--topology {text}: there is no such slice; nearest: {nearest}.")
    return Topology(family, shape, slices)


def shapes_of(family: str) -> list[tuple[int, ...]]:
    """A family's slices, the fewest chips first; of one size the most compact first."""
    pod = FAMILIES[family].pod
    if len(pod) == 2:
        return list(FLAT)
    ranges = (range(4, side + 1, 4) for side in pod)
    cubes = [
        sides
        for sides in itertools.product(*ranges)
        if sides == tuple(sorted(sides)) and math.prod(sides) <= FAMILIES[family].max_chips
    ]
    cubes.sort(key=lambda sides: (math.prod(sides), sum(sides)))
    return [*SUBCUBE_SHAPES, *cubes]
