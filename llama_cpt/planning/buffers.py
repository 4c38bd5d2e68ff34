"""Arrays that are live when a compiled program needs the most memory, grouped by purpose.

The compiler reports the peak memory but does not list the live arrays. The functions here find the
arrays by a liveness analysis of the scheduled HLO text. The peak of the analysis differs from the
compiler's peak, because the text does not show every case in which two arrays share a buffer.
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

# Instructions whose result aliases an operand. They allocate no array, and they do not count as
# uses that keep an array alive.
_ALIASES = ("bitcast", "opt-barrier", "get-tuple-element", "tuple")
# Instructions that write their result into the buffer of the first operand.
_IN_PLACE = ("dynamic-update-slice", "scatter")
# Instructions whose result the analysis does not count. The compiler reports the size of the
# program's arguments separately; the remaining results are negligible.
_UNALLOCATED = ("parameter", "constant", "after-all", "partition-id", "replica-id")

# The set of buffer indices that an instruction's result refers to. For a tuple result, a Python
# tuple with an ArrayRefs per element.
ArrayRefs = frozenset[int] | tuple[Any, ...]
_NO_ARRAYS: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Buffer:
    """An array that the program allocates in HBM."""

    shape: Shape
    origin: str
    """Path of the JAX operation that computes the array, including its name scopes."""
    carried: bool = False
    """True if the array is a part of the state of a while loop."""

    @property
    def bytes(self) -> int:
        """Size in bytes, including the padding of the layout."""
        return self.shape.padded_bytes


@dataclass(frozen=True)
class Peak:
    """The peak memory of a program, without the program's arguments."""

    bytes: int
    buffers: tuple[Buffer, ...]
    """The arrays that are live at the peak, sorted from largest to smallest."""


def peak_of(program: HloModule) -> Peak:
    """Return the peak memory of ``program``; its instructions must be in scheduled order."""
    found = _Liveness(program).peak(program.entry)
    return Peak(found.bytes, tuple(sorted(found.buffers, key=lambda one: -one.bytes)))


class _Liveness:
    """Liveness analysis of a program's computations; the result for each computation is cached."""

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
        # The results of a loop body reuse the buffers of the loop state, and the results of the
        # train step reuse the donated train state. Therefore the arrays in the result of a
        # computation are not counted.
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
    """Return the arrays that each instruction of ``computation`` refers to, and all arrays.

    The first value maps the name of an instruction to indices in the second value, the list of all
    arrays.
    """
    buffers: list[Buffer] = []
    done = {
        one.operands[0]: one
        for one in computation.instructions.values()
        if one.opcode.endswith("-done") and one.operands
    }

    def allocate(shape: Shape, one: Instruction) -> frozenset[int]:
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
            # The result of a start instruction also contains the inputs and context values. The
            # result of the matching done instruction contains only the arrays that are allocated.
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
    """Return ``buffer``, updated for its use by instruction ``one``.

    If ``one`` is a loop, the buffer is carried. A buffer without an origin, such as the initial
    state of a loop, takes the origin of ``one``.
    """
    carried = buffer.carried or one.opcode == "while"
    return Buffer(buffer.shape, buffer.origin or one.origin, carried)


def _aliased_operands(program: HloModule, one: Instruction) -> dict[int, int]:
    """Return a map from the index of a result element to the index of the operand it overwrites.

    Result elements that overwrite no operand are not in the map. A Pallas kernel or a fusion can
    declare the aliasing in an attribute: ``output_to_operand_aliasing={{1}: (0, {})}``. If the root
    of a fusion updates a parameter in place, the attribute is missing; the function finds the
    operand from the instructions of the fusion.
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


def _flatten(refs: ArrayRefs) -> frozenset[int]:
    if isinstance(refs, frozenset):
        return refs
    return frozenset().union(*map(_flatten, refs))


def _element(refs: ArrayRefs, index: int) -> ArrayRefs:
    # If the arrays of a tuple are not known by element, as in a loop state that is a parameter,
    # every element is taken to refer to all of them.
    return refs[index] if isinstance(refs, tuple) and index < len(refs) else _flatten(refs)


@dataclass(frozen=True)
class PeakBreakdown:
    """Bytes per device of the arrays that are live at the peak, by purpose."""

    gradients: int
    saved: int
    """Bytes of the layer inputs and other activations that the remat policy saves."""
    others: int
    """Bytes of all other arrays: gathered weights, logits, activations of one layer."""


def break_down_peak(peak: Peak, trained: Any, *, layers: int, tokens: int) -> PeakBreakdown:
    """Return the bytes at the peak of a training step by purpose.

    The compiler does not record the purpose of an array, so arrays are classified by dtype and
    shape. An array is a gradient if it is float32 and has the shape of a parameter's shard. It is
    a saved activation if it is carried by a loop over layers and its leading dimensions are layers
    and tokens. ``trained`` is a pytree of abstract parameters with shardings, and ``tokens`` is
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
    # The shape of a saved activation is (layers, rows, length, ...), where rows x length = tokens.
    # The compiler can merge or split the two dimensions, so every leading product is compared.
    rows = itertools.accumulate(dims[1:], operator.mul) if stacked else ()
    return "saved" if tokens in rows else "others"


def _without_ones(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Return ``dims`` without dimensions of size 1, which the compiler adds and removes freely."""
    return tuple(size for size in dims if size > 1)
