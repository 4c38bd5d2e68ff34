"""TPU slices by name (``v5p-256``) and by shape (``v5p:4x4x8``)."""

from dataclasses import dataclass
import itertools
import math
import re

from llama_cpt.hardware.chips import CHIPS, Chip
from llama_cpt.runtime.errors import UsageError, UserError

FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
"""Shapes of slices, in chips, of the TPU versions with a two-dimensional torus (v5e and v6e)."""
SUBCUBE_SHAPES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
"""Shapes of slices smaller than 4 x 4 x 4 chips; the sides of larger slices are multiples of 4."""


@dataclass(frozen=True)
class Family:
    """Properties of a TPU version, as stated on the version's page in cloud.google.com/tpu/docs."""

    kind: str
    """``jax.Device.device_kind``, the name of the device in JAX."""
    pod: tuple[int, ...]
    """Number of chips along each side of a pod, which limits the sides of a slice."""
    counted: int
    """Number of units per chip that a slice name counts: 2 if the name contains the number of cores
    (v5p-256 has 128 chips), 1 if it contains the number of chips."""
    devices: int
    """Number of JAX devices per chip."""
    max_chips: int
    """Number of chips in the largest slice."""


FAMILIES = {
    "v5e": Family("TPU v5 lite", (16, 16), 1, 1, 256),
    "v5p": Family("TPU v5", (16, 20, 28), 2, 1, 6144),
    "v6e": Family("TPU v6 lite", (16, 16), 1, 1, 256),
    "tpu7x": Family("TPU7x", (16, 24, 24), 2, 2, 9216),
}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e", "ironwood": "tpu7x"}


@dataclass(frozen=True)
class Topology:
    """One or more TPU slices of the same shape, connected by the data-center network."""

    family: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def text(self) -> str:
        """Shape of one slice as the TPU compiler expects it, such as ``v5p:4x4x8``."""
        return f"{self.family}:{'x'.join(map(str, self.shape))}"

    @property
    def name(self) -> str:
        """Name of one slice in Google Cloud, such as ``v5p-256``."""
        return f"{self.family}-{math.prod(self.shape) * FAMILIES[self.family].counted}"

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Number of JAX devices in all slices."""
        return self.chips * FAMILIES[self.family].devices

    @property
    def chip(self) -> Chip:
        """Data-sheet figures of one device."""
        return CHIPS[FAMILIES[self.family].kind]


def find_topology(text: str, slices: int = 1) -> Topology:
    """Return ``slices`` slices with the shape (``v5p:4x4x8``) or name (``v5p-256``) in ``text``.

    Raises UserError if no such slice exists. The message names the two slices closest in size.
    """
    if slices < 1:
        raise UsageError(f"--slices {slices} must be at least 1.")
    match = re.fullmatch(r"([a-z]\w*?)(?:[:](\d+(?:x\d+)*)|-(\d+))", text.strip().lower())
    if not match:
        raise UsageError(
            f"--topology {text} must be a shape such as v5p:4x4x8 or a name such as v5p-256."
        )
    family = ALIASES.get(match[1], match[1])
    if family not in FAMILIES:
        raise UserError(
            f"--topology {text}: unknown TPU {match[1]!r}; use one of {', '.join(FAMILIES)}."
        )
    if match[2]:
        shape = tuple(map(int, match[2].split("x")))
        chips = math.prod(shape)
    else:
        shape, chips = None, int(match[3]) / FAMILIES[family].counted
    shapes = shapes_of(family)
    if shape is None:
        shape = next((known for known in shapes if math.prod(known) == chips), None)
    if shape not in shapes:
        ratio = lambda known: abs(math.log(math.prod(known) / max(chips, 0.5)))
        closest = sorted(sorted(shapes, key=ratio)[:2], key=math.prod)
        slices_of = [Topology(family, known) for known in closest]
        nearest = " or ".join(
            f"{near.text} ({near.name}, {near.chips} chips)" for near in slices_of
        )
        raise UsageError(f"--topology {text}: there is no such slice; nearest: {nearest}.")
    return Topology(family, shape, slices)


def shapes_of(family: str) -> list[tuple[int, ...]]:
    """Return the shapes, in chips, of a TPU version's slices, ordered by number of chips.

    Among shapes with the same number of chips, the most compact shape is first.
    """
    pod = FAMILIES[family].pod
    if len(pod) == 2:
        return list(FLAT)
    # The sides of slices of at least 4 x 4 x 4 chips are multiples of 4 in ascending order.
    ranges = (range(4, side + 1, 4) for side in pod)
    cubes = [
        sides
        for sides in itertools.product(*ranges)
        if sides == tuple(sorted(sides)) and math.prod(sides) <= FAMILIES[family].max_chips
    ]
    cubes.sort(key=lambda sides: (math.prod(sides), sum(sides)))
    return [*SUBCUBE_SHAPES, *cubes]
