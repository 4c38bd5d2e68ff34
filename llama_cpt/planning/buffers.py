"""The arrays that are live at the peak memory of a compiled program, and a breakdown of them.

The compiler reports the peak, but not the arrays at the peak. A liveness analysis over the
scheduled instructions estimates them. Its peak differs from the compiler's, because the text does
not show all arrays that share a buffer.
"""

from collections.abc import Iterable
from dataclasses import dataclass
import itertools
import operator
import re
from typing import Any

import jax

from llama_cpt.planning.hlo import Computation, Instruction, Shape
from llama_cpt.planning.program import HloModule

# Instructions whose result aliases their operands: they neither allocate nor use an array.
_ALIASES = ("bitcast", "opt-barrier", "get-tuple-element", "tuple")
_IN_PLACE = ("dynamic-update-slice", "scatter")
# Instructions whose result is not allocated by the program; arguments are counted elsewhere.
_UNALLOCATED = ("parameter", "constant", "after-all", "partition-id", "replica-id")

# The arrays that a result refers to, by number, or a tuple of these.
ArrayRefs = frozenset | tuple
_NO_ARRAYS: frozenset = frozenset()


@dataclass(frozen=True)
class Buffer:
    """An array that the program allocates in HBM."""

    shape: Shape
    origin: str
    """The JAX operation that allocated it."""
    carried: bool = False
    """Whether a loop carries it from iteration to iteration."""

    @property
    def bytes(self) -> int:
        """Bytes in memory, padding included."""
        return self.shape.padded_bytes


@dataclass(frozen=True)
class Peak:
    """The largest total of arrays that are live at once, the program's arguments not included."""

    bytes: int
    buffers: tuple[Buffer, ...]
    """The live arrays, largest first."""


def peak_of(program: HloModule) -> Peak:
    """Return the peak of a scheduled program."""
    found = _Liveness(program).peak(program.entry)
    return Peak(found.bytes, tuple(sorted(found.buffers, key=lambda one: -one.bytes)))


class _Liveness:
    """Liveness analysis of computations, each analyzed once."""

    def __init__(self, program: HloModule) -> None:
        self.program = program
        self._peaks: dict[str, Peak] = {}

    def peak(self, name: str) -> Peak:
        if name not in self._peaks:
            self._peaks[name] = self._peak(self.program.computations[name])
        return self._peaks[name]

    def _peak(self, computation: Computation) -> Peak:
        order = list(computation.instructions.values())
        refs, buffers = _allocations(self.program, computation)
        last_use: dict[int, int] = {}
        for index, one in enumerate(order):
            for operand in () if one.opcode in _ALIASES else one.operands:
                for number in _flatten(refs.get(operand, _NO_ARRAYS)):
                    last_use[number] = index
                    buffers[number] = _mark_use(buffers[number], one)
        # The result of a loop body, and of the program, is written to the buffers of its arguments
        # (XLA aliases loop state; train_step donates the train state), so it is not counted.
        seen = set(_flatten(refs[computation.root.name]))
        live: set[int] = set()
        peak = Peak(0, ())
        for index, one in enumerate(order):
            allocated = _flatten(refs[one.name]) - seen
            seen |= allocated
            live |= allocated
            inner = self._inner_peak(one)
            total = sum(buffers[number].bytes for number in live) + inner.bytes
            if total > peak.bytes:
                peak = Peak(total, tuple(buffers[number] for number in live) + inner.buffers)
            live -= {number for number in live if last_use.get(number, index) <= index}
        return peak

    def _inner_peak(self, one: Instruction) -> Peak:
        if one.opcode not in ("while", "call", "conditional"):
            return Peak(0, ())
        return max((self.peak(name) for name in one.called), key=lambda peak: peak.bytes)


def _allocations(
    program: HloModule, computation: Computation
) -> tuple[dict[str, ArrayRefs], list[Buffer]]:
    """Return the arrays that each result refers to, by instruction, and the arrays themselves."""
    buffers: list[Buffer] = []
    done = {
        one.operands[0]: one
        for one in computation.instructions.values()
        if one.opcode.endswith("-done") and one.operands
    }

    def allocate(shape: Shape, one: Instruction) -> frozenset:
        if not shape.in_hbm or not shape.padded_bytes:
            return _NO_ARRAYS
        buffers.append(Buffer(shape, one.origin))
        return frozenset([len(buffers) - 1])

    def result(one: Instruction, operands: list[ArrayRefs]) -> ArrayRefs:
        if one.opcode in _UNALLOCATED:
            return _NO_ARRAYS
        if one.opcode == "tuple":
            return tuple(operands)
        if one.opcode == "get-tuple-element":
            return _element(operands[0], int(one.attribute("index")))
        if one.opcode in (*_ALIASES, "while", "send") or one.opcode.endswith("-done"):
            return operands[0] if operands else _NO_ARRAYS
        if one.opcode.endswith("-start"):
            # The tuple of a start instruction also has its inputs and contexts; the shapes of the
            # matching done instruction are the arrays that it allocates.
            shapes = done[one.name].shapes if one.name in done else one.shapes[:1]
            return frozenset().union(*(allocate(shape, one) for shape in shapes))
        aliased = _aliased_operands(program, one)
        elements = tuple(
            operands[aliased[index]] if index in aliased else allocate(shape, one)
            for index, shape in enumerate(one.shapes)
        )
        return elements if len(elements) != 1 else elements[0]

    refs: dict[str, ArrayRefs] = {}
    for one in computation.instructions.values():
        refs[one.name] = result(one, [refs.get(name, _NO_ARRAYS) for name in one.operands])
    return refs, buffers


def _mark_use(buffer: Buffer, one: Instruction) -> Buffer:
    """Return ``buffer`` with what its use in ``one`` reveals.

    The initial state of a loop has no origin of its own; the loop's origin describes it.
    """
    carried = buffer.carried or one.opcode == "while"
    return Buffer(buffer.shape, buffer.origin or one.origin, carried)


def _aliased_operands(program: HloModule, one: Instruction) -> dict[int, int]:
    """Return which operand each element of the result overwrites, by element number.

    A Pallas kernel or a fusion may declare this (``output_to_operand_aliasing={{1}: (0, {})}``). A
    fusion whose root updates a parameter in place aliases it without declaring it.
    """
    if one.opcode in _IN_PLACE:
        return {0: 0}
    declared = re.search(r"output_to_operand_aliasing=\{(.*?)\)\s*\}", one.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+)", declared[0]) if declared else []
    aliased = {int(element or 0): int(operand) for element, operand in pairs}
    if one.opcode != "fusion":
        return aliased
    inner = program.computations[one.called[0]].instructions
    root = program.computations[one.called[0]].root
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for index, root_part in enumerate(results):
        updated = False
        while root_part.opcode in (*_IN_PLACE, "bitcast"):
            updated |= root_part.opcode in _IN_PLACE
            root_part = inner[root_part.operands[0]]
        if updated and root_part.opcode == "parameter":
            aliased.setdefault(index, int(root_part.inside))
    return aliased


def _flatten(refs: ArrayRefs) -> frozenset:
    if isinstance(refs, frozenset):
        return refs
    return frozenset().union(*map(_flatten, refs))


def _element(refs: ArrayRefs, index: int) -> ArrayRefs:
    # A while loop's state may be known as one set only; then each element refers to all of it.
    return refs[index] if isinstance(refs, tuple) and index < len(refs) else _flatten(refs)


@dataclass(frozen=True)
class PeakBreakdown:
    """The arrays of a peak by purpose, in bytes of one device."""

    gradients: int
    saved: int
    """Inputs of the layers, and whatever else the remat policy saves."""
    others: int
    """Gathered weights, logits, activations of one layer."""


def break_down_peak(peak: Peak, trained: Any, *, layers: int, tokens: int) -> PeakBreakdown:
    """Classify the arrays of the peak of a training step by dtype and shape.

    The compiler does not record the purpose of an array. Gradients are float32 and have the shape
    of a parameter's shard. A saved activation is carried by a loop over layers, all of them or a
    part, and has values per layer and token. ``trained`` has the abstract parameters; ``tokens`` is
    the number of tokens of a micro-batch on one device.
    """
    leaves = jax.tree.leaves(trained)
    shards = {_without_ones(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves}
    found = {"gradients": 0, "saved": 0, "others": 0}
    for one in peak.buffers:
        found[_purpose(one, shards, layers, tokens)] += one.bytes
    return PeakBreakdown(**found)


def _purpose(one: Buffer, shards: Iterable[tuple[int, ...]], layers: int, tokens: int) -> str:
    dims = _without_ones(one.shape.dims)
    stacked = one.carried and bool(dims) and dims[0] <= layers
    for shard in shards:
        if dims == shard or (stacked and shard[0] == layers and dims[1:] == shard[1:]):
            return "gradients" if one.shape.dtype == "f32" else "others"
    # The leading dimensions after the layers multiply to the tokens: (layers, rows, length, ...).
    rows = itertools.accumulate(dims[1:], operator.mul) if stacked else ()
    return "saved" if tokens in rows else "others"


def _without_ones(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Drop dimensions of size 1, which the compiler adds and removes."""
    return tuple(size for size in dims if size > 1)
