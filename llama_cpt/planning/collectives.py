"""What a program sends between chips, by kind and by the mesh axes that it crosses."""

from collections.abc import Mapping
from dataclasses import dataclass
import math
import re

import numpy as np

from llama_cpt.planning.hlo import Instruction
from llama_cpt.planning.program import HloStep

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# The compiler writes a reduce-scatter as this fusion of an all-reduce and a slice of it.
SCATTERED = "all-reduce-scatter"
SLICES_AXIS = "replica"


@dataclass(frozen=True)
class Collective:
    """One kind over one set of axes, of one device, a step."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes along which the devices of a group differ."""
    group: int
    """Devices that take part together."""
    times: int
    bytes: float
    """That each device receives: (group - 1) / group of the gathered array, twice for a sum that
    all get, all of it for a permutation."""


def collectives(steps: list[HloStep], mesh: Mapping[str, int]) -> list[Collective]:
    """Of ``steps`` on a mesh of these axis sizes, the most bytes first; starts count, ends do not.

    Groups name devices by their place in the mesh, the last axis fastest.
    """
    found: dict[tuple, list[float]] = {}
    for step in steps:
        kind = kind_of(step)
        if kind is None:
            continue
        if step.instruction.opcode == "recv":
            key = kind, (SLICES_AXIS,), mesh[SLICES_AXIS]
        else:
            groups = device_groups(step.instruction, math.prod(mesh.values()))
            axes = crossed_axes(groups, mesh)
            if not axes:
                continue
            key = kind, axes, len(groups[0])
        total = found.setdefault(key, [0, 0.0])
        total[0] += step.times
        total[1] += step.times * received_bytes(kind, step.instruction, key[2])
    made = [Collective(*key, int(times), amount) for key, (times, amount) in found.items()]
    return sorted(made, key=lambda one: -one.bytes)


def kind_of(step: HloStep) -> str | None:
    """One of KINDS where ``step`` begins a collective, else None."""
    if step.instruction.opcode == "recv":
        # Between slices the network's runtime does it: what it sends is received summed or whole.
        told = re.search(r'_xla_megascale_transfer_type="(\w+)"', step.instruction.attributes)
        return told[1].lower().replace("_", "-") if told else None
    opcode = step.instruction.opcode.removesuffix("-start")
    if opcode not in KINDS or _goes_on(step):
        return None
    if opcode == "all-reduce" and step.computation.name.startswith(SCATTERED):
        return "reduce-scatter"
    return opcode


def _goes_on(step: HloStep) -> bool:
    """Whether ``step`` is a later part of a collective that was begun elsewhere.

    A TPU writes one that overlaps products as a chain of fusions, each naming it anew.
    """
    if not step.fused or "chain_id=" not in step.instruction.attributes:
        return False
    return "AsyncCollectiveStart" not in step.computation.root.attributes


def received_bytes(kind: str, one: Instruction, group: int) -> float:
    """Bytes that one device must receive, by the best of algorithms."""
    shapes = one.shapes
    if one.opcode.endswith("-start") and one.opcode != "all-reduce-start":
        # Its result is (what goes in, what comes out, contexts): of equal numbers of arrays.
        arrays = [shape for shape in shapes if shape.dtype not in ("u32", "s32") or shape.dims]
        half = max(len(arrays) // 2, 1)
        shapes = arrays[half : 2 * half] or arrays
    amount = sum(shape.bytes for shape in (shapes[:1] if one.opcode == "recv" else shapes))
    share = (group - 1) / group
    match kind:
        case "collective-permute":
            return float(amount)
        case "all-reduce":
            return 2 * share * amount
        case "reduce-scatter" if one.opcode.startswith(("reduce-scatter", "recv")):
            return share * amount * group
    return share * amount


def device_groups(one: Instruction, devices: int) -> np.ndarray:
    """(groups, devices of each), in each way that the compiler writes them.

    ``{{0,1},{2,3}}``; ``[2,2]<=[4]``; ``mesh['a'=2,'b'=2] {'b'}``; a permutation's pairs.
    """
    if pairs := re.search(r"source_target_pairs=(\{\{.*?\}\})", one.attributes):
        return _listed(pairs[1])
    if listed := re.search(r"replica_groups=(\{\{.*?\}\})", one.attributes):
        return _listed(listed[1])
    mesh = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=(\(.*?\)))? \{([^}]*)\}"
    named = re.search(mesh, one.attributes)
    if named:
        return _along(*named.groups())
    made = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", one.attributes)
    if not made:
        return np.arange(devices)[None]
    return _counted(made[2]).reshape(_numbers(made[1]))


def _along(mesh: str, order: str | None, axes: str) -> np.ndarray:
    """Groups along some axes of a mesh; an axis may be a part of one, ``'a':(before)size``."""
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    dims: list[int] = []
    crossed: list[int] = []
    for name, text in re.findall(r"'([^']+)'=(\d+)", mesh):
        size, done = int(text), 1
        named = [(int(before or 1), int(of or size)) for axis, before, of in parts if axis == name]
        for before, of in sorted(named):
            dims += [before // done, of]
            crossed.append(len(dims) - 1)
            done = before * of
        dims.append(size // done)
    kept = [dim for dim in range(len(dims)) if dim not in crossed]
    ids = _counted(order or f"[{math.prod(dims)}]").reshape(dims).transpose(kept + crossed)
    return ids.reshape(-1, math.prod(dims[dim] for dim in crossed))


def _counted(text: str) -> np.ndarray:
    """``[2,4]T(1,0)``: 0 to 7 in these dims, transposed, flat; or the ids themselves."""
    made = re.match(r"\(?\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not made:
        return np.asarray(_numbers(text))
    dims = _numbers(made[1])
    ids = np.arange(math.prod(dims)).reshape(dims)
    return (ids.transpose(_numbers(made[2])) if made[2] else ids).flatten()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _listed(text: str) -> np.ndarray:
    groups = [re.findall(r"\d+", group) for group in re.findall(r"\{([\d, ]+)\}", text)]
    longest = max(map(len, groups))
    return np.asarray([group for group in groups if len(group) == longest], dtype=int)


def crossed_axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the axes along which some group's devices differ."""
    at = np.stack(np.unravel_index(groups, tuple(mesh.values())))
    differ = (at != at[:, :, :1]).any(axis=(1, 2))
    return tuple(axis for axis, crossed in zip(mesh, differ, strict=True) if crossed)
