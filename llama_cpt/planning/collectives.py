"""Collectives of a compiled program: bytes received, by kind and by the mesh axes they cross."""

from collections.abc import Mapping
from dataclasses import dataclass
import math
import re

import numpy as np

from llama_cpt.planning.hlo import Instruction
from llama_cpt.planning.program import HloStep

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# The TPU compiler writes a reduce-scatter as a fusion of an all-reduce and a slice of its result;
# the name of the fused computation begins so.
FUSED_REDUCE_SCATTER = "all-reduce-scatter"
SLICES_AXIS = "replica"


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind over the same mesh axes: the total of one device per step."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes along which the devices of a group differ."""
    group: int
    """Number of devices in a group."""
    times: int
    bytes: float
    """Bytes that each device receives: (group - 1) / group of the full array, twice that for an
    all-reduce, the whole array for a permutation."""


def collectives(steps: list[HloStep], mesh: Mapping[str, int]) -> list[Collective]:
    """Return the collectives in ``steps``, the largest first.

    ``mesh`` has the sizes of the mesh axes, the last axis fastest, in the order in which the groups
    number the devices. An asynchronous collective counts at its start, not at its done instruction.
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
    totals = [Collective(*key, int(times), amount) for key, (times, amount) in found.items()]
    return sorted(totals, key=lambda one: -one.bytes)


def kind_of(step: HloStep) -> str | None:
    """Return the kind of the collective that ``step`` starts, one of KINDS, or None."""
    if step.instruction.opcode == "recv":
        # Collectives between slices run in the Megascale runtime: the program has send and recv
        # instructions, and the attribute of the recv names the collective.
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', step.instruction.attributes)
        return kind[1].lower().replace("_", "-") if kind else None
    opcode = step.instruction.opcode.removesuffix("-start")
    if opcode not in KINDS or _is_continuation(step):
        return None
    if opcode == "all-reduce" and step.computation.name.startswith(FUSED_REDUCE_SCATTER):
        return "reduce-scatter"
    return opcode


def _is_continuation(step: HloStep) -> bool:
    """Return whether ``step`` is a later part of a collective that another fusion starts.

    The TPU compiler splits a collective that overlaps matrix products into a chain of fusions. Each
    of them contains the same collective instruction; only the one that starts it counts.
    """
    if not step.fused or "chain_id=" not in step.instruction.attributes:
        return False
    return "AsyncCollectiveStart" not in step.computation.root.attributes


def received_bytes(kind: str, one: Instruction, group: int) -> float:
    """Return the bytes that one device receives with a bandwidth-optimal (ring) algorithm."""
    shapes = one.shapes
    if one.opcode.endswith("-start") and one.opcode != "all-reduce-start":
        # The result is (inputs, outputs, contexts), with as many outputs as inputs. A context is a
        # scalar u32 or s32. An all-reduce-start has its outputs only.
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
            # Here the result is the scattered part; in a fused all-reduce it is the full array.
            return share * amount * group
    return share * amount


def device_groups(one: Instruction, devices: int) -> np.ndarray:
    """Parse the device groups of a collective: an array of shape (groups, devices per group).

    The compiler has several notations: lists ``{{0,1},{2,3}}``, iota ``[2,2]<=[4]`` (reshaped and
    transposed counting), axes of a mesh ``mesh['a'=2,'b'=2] {'b'}``, and the source-target pairs of
    a permutation. Without any of them all devices form one group.
    """
    if pairs := re.search(r"source_target_pairs=(\{\{.*?\}\})", one.attributes):
        return _parse_list(pairs[1])
    if listed := re.search(r"replica_groups=(\{\{.*?\}\})", one.attributes):
        return _parse_list(listed[1])
    mesh = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=(\(.*?\)))? \{([^}]*)\}"
    named = re.search(mesh, one.attributes)
    if named:
        return _parse_mesh_axes(*named.groups())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", one.attributes)
    if not iota:
        return np.arange(devices)[None]
    return _parse_iota(iota[2]).reshape(_numbers(iota[1]))


def _parse_mesh_axes(mesh: str, order: str | None, axes: str) -> np.ndarray:
    """Return the groups along some mesh axes; ``'a':(before)size`` is a part of axis ``a``."""
    # A sub-axis ``'a':(p)s`` has size s, with p positions of axis a before it; each axis is split
    # into its named sub-axes and the rest, and groups run along the named ones.
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
    ids = _parse_iota(order or f"[{math.prod(dims)}]").reshape(dims).transpose(kept + crossed)
    return ids.reshape(-1, math.prod(dims[dim] for dim in crossed))


def _parse_iota(text: str) -> np.ndarray:
    """Return the flat device ids of ``[2,4]T(1,0)``, iota reshaped and transposed, or of a list."""
    iota = re.match(r"\(?\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not iota:
        return np.asarray(_numbers(text))
    dims = _numbers(iota[1])
    ids = np.arange(math.prod(dims)).reshape(dims)
    return (ids.transpose(_numbers(iota[2])) if iota[2] else ids).flatten()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _parse_list(text: str) -> np.ndarray:
    groups = [re.findall(r"\d+", group) for group in re.findall(r"\{([\d, ]+)\}", text)]
    # A group of one device receives nothing; groups of other sizes are dropped so that the result
    # is rectangular.
    longest = max(map(len, groups))
    return np.asarray([group for group in groups if len(group) == longest], dtype=int)


def crossed_axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Return the names of the axes along which the devices of some group differ."""
    coordinates = np.stack(np.unravel_index(groups, tuple(mesh.values())))
    differ = (coordinates != coordinates[:, :, :1]).any(axis=(1, 2))
    return tuple(axis for axis, crossed in zip(mesh, differ, strict=True) if crossed)
