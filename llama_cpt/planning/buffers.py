"""The arrays that are alive when a program needs the most memory: what decides its peak.

The compiler tells the peak but not what makes it. This walks the program in the order in which it
was scheduled, so its own peak is an estimate: it does not know all the arrays that share a place.
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

# Another name for what operands hold, or for a part of it: no use of it.
_NAMES = ("bitcast", "opt-barrier", "get-tuple-element", "tuple")
_IN_PLACE = ("dynamic-update-slice", "scatter")
_NOTHING = ("parameter", "constant", "after-all", "partition-id", "replica-id")

# What an instruction's result holds: arrays by number, or a tuple of such.
Held = frozenset | tuple
_NONE: frozenset = frozenset()


@dataclass(frozen=True)
class Buffer:
    """An array that the program makes in a chip's memory."""

    shape: Shape
    origin: str
    """The model's operation that made it."""
    carried: bool = False
    """By a loop, from turn to turn."""

    @property
    def bytes(self) -> int:
        """As it lies in memory."""
        return self.shape.padded_bytes


@dataclass(frozen=True)
class Peak:
    """The most that lives at once beside the arguments."""

    bytes: int
    buffers: tuple[Buffer, ...]
    """The largest first."""


def peak_of(program: HloModule) -> Peak:
    """Of a scheduled program."""
    found = _Walk(program).peak(program.entry)
    return Peak(found.bytes, tuple(sorted(found.buffers, key=lambda one: -one.bytes)))


class _Walk:
    """Peaks of computations, each looked at once."""

    def __init__(self, program: HloModule) -> None:
        self.program = program
        self.known: dict[str, Peak] = {}

    def peak(self, name: str) -> Peak:
        if name not in self.known:
            self.known[name] = self._peak(self.program.computations[name])
        return self.known[name]

    def _peak(self, computation: Computation) -> Peak:
        order = list(computation.instructions.values())
        held, buffers = _holdings(self.program, computation)
        dies: dict[int, int] = {}
        for place, one in enumerate(order):
            for operand in () if one.opcode in _NAMES else one.operands:
                for number in _numbers(held.get(operand, _NONE)):
                    dies[number] = place
                    buffers[number] = _used(buffers[number], one)
        # What a loop's body hands on, and what the program returns, lies where its arguments lay.
        seen = set(_numbers(held[computation.root.name]))
        alive: set[int] = set()
        best = Peak(0, ())
        for place, one in enumerate(order):
            born = _numbers(held[one.name]) - seen
            seen |= born
            alive |= born
            inner = self._inner(one)
            total = sum(buffers[number].bytes for number in alive) + inner.bytes
            if total > best.bytes:
                best = Peak(total, tuple(buffers[number] for number in alive) + inner.buffers)
            alive -= {number for number in alive if dies.get(number, place) <= place}
        return best

    def _inner(self, one: Instruction) -> Peak:
        if one.opcode not in ("while", "call", "conditional"):
            return Peak(0, ())
        return max((self.peak(name) for name in one.called), key=lambda peak: peak.bytes)


def _holdings(program: HloModule, computation: Computation) -> tuple[dict[str, Held], list[Buffer]]:
    """By instruction, the numbers of the arrays that its result holds; the arrays."""
    buffers: list[Buffer] = []
    ends = {
        one.operands[0]: one
        for one in computation.instructions.values()
        if one.opcode.endswith("-done") and one.operands
    }

    def new(shape: Shape, one: Instruction) -> frozenset:
        if not shape.in_hbm or not shape.padded_bytes:
            return _NONE
        buffers.append(Buffer(shape, one.origin))
        return frozenset([len(buffers) - 1])

    def holding(one: Instruction, operands: list[Held]) -> Held:
        if one.opcode in _NOTHING:
            return _NONE
        if one.opcode == "tuple":
            return tuple(operands)
        if one.opcode == "get-tuple-element":
            return _part(operands[0], int(one.attribute("index")))
        if one.opcode in (*_NAMES, "while", "send") or one.opcode.endswith("-done"):
            return operands[0] if operands else _NONE
        if one.opcode.endswith("-start"):
            made = ends[one.name].shapes if one.name in ends else one.shapes[:1]
            return frozenset().union(*(new(shape, one) for shape in made))
        over = _overwritten(program, one)
        parts = tuple(
            operands[over[place]] if place in over else new(shape, one)
            for place, shape in enumerate(one.shapes)
        )
        return parts if len(parts) != 1 else parts[0]

    held: dict[str, Held] = {}
    for one in computation.instructions.values():
        held[one.name] = holding(one, [held.get(name, _NONE) for name in one.operands])
    return held, buffers


def _used(buffer: Buffer, one: Instruction) -> Buffer:
    """``buffer`` once ``one`` reads it: room that is made for a loop is known by the loop."""
    carried = buffer.carried or one.opcode == "while"
    return Buffer(buffer.shape, buffer.origin or one.origin, carried)


def _overwritten(program: HloModule, one: Instruction) -> dict[int, int]:
    """Part of the result -> operand in whose place it is written."""
    if one.opcode in _IN_PLACE:
        return {0: 0}
    told = re.search(r"output_to_operand_aliasing=\{(.*?)\)\s*\}", one.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+)", told[0]) if told else []
    over = {int(part or 0): int(operand) for part, operand in pairs}
    if one.opcode != "fusion":
        return over
    inner = program.computations[one.called[0]].instructions
    root = program.computations[one.called[0]].root
    results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for place, made in enumerate(results):
        updated = False
        while made.opcode in (*_IN_PLACE, "bitcast"):
            updated |= made.opcode in _IN_PLACE
            made = inner[made.operands[0]]
        if updated and made.opcode == "parameter":
            over.setdefault(place, int(made.inside))
    return over


def _numbers(held: Held) -> frozenset:
    if isinstance(held, frozenset):
        return held
    return frozenset().union(*map(_numbers, held))


def _part(held: Held, place: int) -> Held:
    return held[place] if isinstance(held, tuple) and place < len(held) else _numbers(held)


@dataclass(frozen=True)
class PeakBreakdown:
    """Bytes of one device."""

    gradients: int
    saved: int
    """Layers' inputs, and what else the remat policy keeps."""
    others: int
    """Gathered weights, logits, activations of one layer."""


def break_down_peak(peak: Peak, trained: Any, *, layers: int, tokens: int) -> PeakBreakdown:
    """Of a step that trains the abstract ``trained`` on ``tokens`` of a device at a time."""
    leaves = jax.tree.leaves(trained)
    parts = {_without_ones(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves}
    found = {"gradients": 0, "saved": 0, "others": 0}
    for one in peak.buffers:
        found[_part(one, parts, layers, tokens)] += one.bytes
    return PeakBreakdown(**found)


def _part(one: Buffer, parts: Iterable[tuple[int, ...]], layers: int, tokens: int) -> str:
    dims = _without_ones(one.shape.dims)
    stacked = one.carried and bool(dims) and dims[0] <= layers
    for whole in parts:
        if dims == whole or (stacked and whole[0] == layers and dims[1:] == whole[1:]):
            return "gradients" if one.shape.dtype == "f32" else "others"
    rows = itertools.accumulate(dims[1:], operator.mul) if stacked else ()
    return "saved" if tokens in rows else "others"


def _without_ones(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in dims if size > 1)
