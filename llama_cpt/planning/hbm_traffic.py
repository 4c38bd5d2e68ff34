"""Count of the bytes that the operations of a compiled program read from and write to HBM."""

import math

from llama_cpt.planning.hlo import Computation, Instruction, Shape
from llama_cpt.planning.program import HloModule, HloStep

# Instructions that are not counted, because they only name memory or because they call computations
# whose instructions are counted.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "async-start",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "opt-barrier",
}
_READS_PART = ("dynamic-slice", "slice", "gather")
# Operations of a fusion that do not read their whole operand if a slice of their result follows.
_VIEWS = ("bitcast", "pad")


def hbm_bytes(program: HloModule, steps: list[HloStep]) -> int:
    """Return the bytes of HBM traffic per device and step.

    The count assumes that each operation reads its operands once and writes its results once. A
    fusion is one operation. If a fusion only slices an operand, only the bytes of the slices are
    counted. If a fusion updates a result in place, only the bytes of the update are counted.
    Padding is not counted, and repeated reads of an operand by a kernel count once.
    """
    total = 0
    for step in steps:
        one = step.instruction
        # An asynchronous operation is counted at its start.
        if step.fused or one.opcode in _FREE or one.opcode.endswith("-done"):
            continue
        total += step.times * (_read_bytes(program, step) + _written_bytes(program, step))
    return total


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _read_bytes(program: HloModule, step: HloStep) -> int:
    one = step.instruction
    known = step.computation.instructions
    operands = [known[name] for name in one.operands if name in known]
    if one.opcode in _READS_PART:
        return one.bytes if _in_hbm(operands[0].shapes) else 0
    if one.opcode == "dynamic-update-slice":
        return _in_hbm(operands[1].shapes)
    if one.opcode != "fusion":
        return sum(_in_hbm(operand.shapes) for operand in operands)
    inner = program.computations[one.called[0]]
    parameters = _parameters(inner)
    return sum(
        int(min(_in_hbm(operand.shapes), _sliced_bytes(program, inner, parameters[index].name)))
        for index, operand in enumerate(operands)
        if index in parameters
    )


def _parameters(inner: Computation) -> dict[int, Instruction]:
    """Return a map from parameter number to the parameter instruction of computation ``inner``."""
    every = inner.instructions.values()
    return {int(one.inside): one for one in every if one.opcode == "parameter"}


def _sliced_bytes(program: HloModule, inner: Computation, name: str) -> float:
    """Return the bytes of the slices that fusion ``inner`` reads from the array ``name``.

    Returns infinity if the fusion also reads the array with an operation that is not a slice,
    because such an operation reads the whole array.
    """
    amount = 0.0
    for user in (each for each in inner.instructions.values() if name in each.operands):
        first = user.operands[0] == name
        if first and user.opcode in _READS_PART:
            amount += user.bytes
        elif first and user.opcode in _VIEWS and not user.root:
            amount += _sliced_bytes(program, inner, user.name)
        elif user.opcode == "fusion":
            called = program.computations[user.called[0]]
            amount += sum(
                _sliced_bytes(program, called, parameter.name)
                for index, parameter in _parameters(called).items()
                if user.operands[index] == name
            )
        # An array is not read if it is updated in place or returned unchanged.
        elif not (first and user.opcode == "dynamic-update-slice") and not _is_root_tuple(user):
            return math.inf
    return amount


def _is_root_tuple(user: Instruction) -> bool:
    """Return whether ``user`` is the root tuple of a fusion. A root tuple reads no operand."""
    return user.root and user.opcode == "tuple"


def _written_bytes(program: HloModule, step: HloStep) -> int:
    one = step.instruction
    if one.opcode == "dynamic-update-slice":
        return _in_hbm(step.computation.operand(one, 1).shapes)
    if one.opcode == "copy-start":
        # The result is (output, input, context); other start instructions list the inputs first.
        return _in_hbm(one.shapes[:1])
    if one.opcode.endswith("-start"):
        # The result is a tuple of inputs, as many outputs, and contexts.
        count = len(one.operands)
        return _in_hbm(one.shapes[count : 2 * count] or one.shapes)
    if one.opcode != "fusion":
        return _in_hbm(one.shapes)
    inner = program.computations[one.called[0]]
    results = inner.root
    if results.opcode == "tuple":
        roots = [inner.instructions[name] for name in results.operands]
    else:
        roots = [results]
    total = 0
    for shape, each in zip(one.shapes, roots, strict=False):
        if each.opcode == "dynamic-update-slice":
            # Only the update is written; the rest of the array keeps its values.
            shape = inner.operand(each, 1).shape if shape.in_hbm else shape
        total += 0 if each.opcode == "parameter" else _in_hbm((shape,))
    return total
