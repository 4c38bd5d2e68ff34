"""Totals of a compiled program's collectives, by kind and by the mesh axes that they cross."""

from collections.abc import Mapping
from dataclasses import dataclass
import math
import re

import numpy as np

from llama_cpt.planning.hlo import Instruction
from llama_cpt.planning.program import HloStep

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# Prefix of the name of a fused computation that implements a reduce-scatter: the TPU compiler
# writes it as an all-reduce and a slice of the result.
FUSED_REDUCE_SCATTER = "all-reduce-scatter"
# The mesh axis along which the devices of different TPU slices differ.
SLICES_AXIS = "replica"


@dataclass(frozen=True)
class Collective:
    """Totals, per device and step, of the collectives of one kind over one set of mesh axes.

    Each collective exchanges data within groups of devices.
    """

    kind: str
    axes: tuple[str, ...]
    """Names of the mesh axes along which the devices of a group differ."""
    group: int
    """Number of devices in a group."""
    times: int
    """Number of collectives that a device takes part in per step."""
    bytes: float
    """Bytes that a device receives per step. A collective contributes (group - 1) / group of the
    full array, an all-reduce twice this amount, and a permutation the whole array."""


def collectives(steps: list[HloStep], mesh: Mapping[str, int]) -> list[Collective]:
    """Return the totals of the collectives in ``steps``, sorted by bytes, largest first.

    ``mesh`` maps axis names to sizes. A device number in the program is the index of the device in
    the flattened mesh (row-major order). An asynchronous collective is counted at its start
    instruction.
    """
    found: dict[tuple[str, tuple[str, ...], int], list[float]] = {}
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
    """Return the kind of collective that ``step`` starts (one of ``KINDS``).

    Returns None if ``step`` is not a collective or does not start one.
    """
    if step.instruction.opcode == "recv":
        # The Megascale runtime executes collectives between slices. In the HLO text they are send
        # and recv instructions, and an attribute of the recv names the kind.
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', step.instruction.attributes)
        return kind[1].lower().replace("_", "-") if kind else None
    opcode = step.instruction.opcode.removesuffix("-start")
    if opcode not in KINDS or _is_continuation(step):
        return None
    if opcode == "all-reduce" and step.computation.name.startswith(FUSED_REDUCE_SCATTER):
        return "reduce-scatter"
    return opcode


def _is_continuation(step: HloStep) -> bool:
    """Return whether ``step`` continues a collective that an earlier fusion started.

    The TPU compiler splits a collective that overlaps with matrix products into a chain of fusions.
    Every fusion of the chain contains the collective instruction, so only the first fusion is
    counted.
    """
    if not step.fused or "chain_id=" not in step.instruction.attributes:
        return False
    return "AsyncCollectiveStart" not in step.computation.root.attributes


def received_bytes(kind: str, one: Instruction, group: int) -> float:
    """Return the bytes that a device receives in one collective with the ring algorithm.

    ``group`` is the number of devices in a group.
    """
    shapes = one.shapes
    if one.opcode.endswith("-start") and one.opcode != "all-reduce-start":
        # The result is a tuple of inputs, as many outputs, and contexts, which are u32 or s32
        # scalars. The result of an all-reduce-start contains only the outputs.
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
            # The result of these instructions is one device's part of the array. The result of a
            # fused all-reduce is the full array.
            return share * amount * group
        case _:
            return share * amount


def device_groups(one: Instruction, devices: int) -> np.ndarray:
    """Return the device numbers of a collective's groups, shape (groups, devices per group).

    The compiler uses four notations: lists ``{{0,1},{2,3}}``; an iota ``[2,2]<=[4]``, which is a
    reshaped and possibly transposed range; axes of a mesh ``mesh['a'=2,'b'=2] {'b'}``; and the
    source-target pairs of a permutation. If the instruction contains none of these notations, all
    ``devices`` form one group.
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
    """Return the device numbers of groups along ``axes``, shape (groups, devices per group).

    ``mesh`` lists the axes, as in ``'a'=2,'b'=4``. ``order`` is the iota or list of device numbers
    in the mesh; None means row-major order. ``axes`` names whole axes (``'a'``) or sub-axes
    (``'b':(2)2``).
    """
    # In ``'a':(p)s``, axis a is split into dimensions. The sub-axis is the dimension of size s, and
    # the dimensions before it (the slower ones) have p positions. Each axis becomes several
    # dimensions: the named sub-axes and the remaining sub-axes. A group extends along the named
    # sub-axes.
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
    """Return the device numbers, shape (devices,), of a list or of an iota like ``[2,4]T(1,0)``.

    ``[2,4]T(1,0)`` is the range of 8 numbers, reshaped to (2, 4), transposed and flattened.
    """
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
    # A group of a single device receives nothing. Only the largest groups are returned, so that
    # the result is a rectangular array.
    longest = max(map(len, groups))
    return np.asarray([group for group in groups if len(group) == longest], dtype=int)


def crossed_axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Return the names of the mesh axes along which devices of the same group differ.

    ``groups`` has shape (groups, devices per group); ``mesh`` maps axis names to sizes.
    """
    coordinates = np.stack(np.unravel_index(groups, tuple(mesh.values())))
    differ = (coordinates != coordinates[:, :, :1]).any(axis=(1, 2))
    return tuple(axis for axis, crossed in zip(mesh, differ, strict=True) if crossed)
