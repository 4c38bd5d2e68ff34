"""HBM traffic of a compiled program: bytes that its operations read and write."""

import math

from llama_cpt.planning.hlo import Computation, Instruction, Shape
from llama_cpt.planning.program import HloModule, HloStep

# Instructions without traffic: names for memory, or callers of instructions that are counted.
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
# Inside a fusion these pass values on unchanged; a later slice may read only a part of them.
_VIEWS = ("bitcast", "pad")


def hbm_bytes(program: HloModule, steps: list[HloStep]) -> int:
    """Return the HBM bytes of one device per step: operands once and results once per operation.

    A fusion is one operation. An operand that it only slices counts as the slices, and a result
    that it updates in place counts as the update. Padding and repeated reads of a kernel are not
    counted.
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
    """Return the parameters of a computation by number."""
    every = inner.instructions.values()
    return {int(one.inside): one for one in every if one.opcode == "parameter"}


def _sliced_bytes(program: HloModule, inner: Computation, name: str) -> float:
    """Return the bytes of the slices that a fusion takes of the array ``name``.

    Infinity if any other operation reads it, which then reads all of it.
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
        # An array that is updated in place, or returned as it is, is not read.
        elif not (first and user.opcode == "dynamic-update-slice") and not _is_root_tuple(user):
            return math.inf
    return amount


def _is_root_tuple(user: Instruction) -> bool:
    """Return whether ``user`` is the result tuple of a fusion, which returns operands unchanged."""
    return user.root and user.opcode == "tuple"


def _written_bytes(program: HloModule, step: HloStep) -> int:
    one = step.instruction
    if one.opcode == "dynamic-update-slice":
        return _in_hbm(step.computation.operand(one, 1).shapes)
    if one.opcode == "copy-start":
        # Its result is (output, input, context), unlike that of the other start instructions.
        return _in_hbm(one.shapes[:1])
    if one.opcode.endswith("-start"):
        # Its result is (inputs, outputs, contexts), with as many outputs as inputs.
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
            # The rest of the array keeps its values; only the update is written.
            shape = inner.operand(each, 1).shape if shape.in_hbm else shape
        total += 0 if each.opcode == "parameter" else _in_hbm((shape,))
    return total
