"""Bytes that a program's operations read from and write to a chip's memory."""

import math

from llama_cpt.planning.hlo import Computation, Instruction, Shape
from llama_cpt.planning.program import HloModule, HloStep

# They move nothing: names for memory, or what stands around operations that count.
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
# Within a fusion: the same numbers, of which only some may be read later.
_VIEWS = ("bitcast", "pad")


def hbm_bytes(program: HloModule, steps: list[HloStep]) -> int:
    """Of one device a step: each operation's operands once and its result once.

    A fusion is one operation; of an operand that it only slices, the slices count, and of a result
    that it updates in place, the update. Padding, and what a kernel reads twice, come on top.
    """
    total = 0
    for step in steps:
        one = step.instruction
        # What is done was counted at its start.
        if step.fused or one.opcode in _FREE or one.opcode.endswith("-done"):
            continue
        total += step.times * (_read(program, step) + _written(program, step))
    return total


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _read(program: HloModule, step: HloStep) -> int:
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
        int(min(_in_hbm(operand.shapes), _part_read(program, inner, parameters[place].name)))
        for place, operand in enumerate(operands)
        if place in parameters
    )


def _parameters(inner: Computation) -> dict[int, Instruction]:
    every = inner.instructions.values()
    return {int(one.inside): one for one in every if one.opcode == "parameter"}


def _part_read(program: HloModule, inner: Computation, name: str) -> float:
    """Of an array within a fusion: the slices taken where nothing else reads it, else no end."""
    amount = 0.0
    for user in (each for each in inner.instructions.values() if name in each.operands):
        first = user.operands[0] == name
        if first and user.opcode in _READS_PART:
            amount += user.bytes
        elif first and user.opcode in _VIEWS and not user.root:
            amount += _part_read(program, inner, user.name)
        elif user.opcode == "fusion":
            called = program.computations[user.called[0]]
            amount += sum(
                _part_read(program, called, parameter.name)
                for place, parameter in _parameters(called).items()
                if user.operands[place] == name
            )
        elif not (first and user.opcode == "dynamic-update-slice") and not _hands_on(user):
            return math.inf
    return amount


def _hands_on(user: Instruction) -> bool:
    """A result that is an operand as it was."""
    return user.root and user.opcode == "tuple"


def _written(program: HloModule, step: HloStep) -> int:
    one = step.instruction
    if one.opcode == "dynamic-update-slice":
        return _in_hbm(step.computation.operand(one, 1).shapes)
    if one.opcode == "copy-start":
        # (what comes out, what goes in, ...), unlike the others.
        return _in_hbm(one.shapes[:1])
    if one.opcode.endswith("-start"):
        # (what goes in, what comes out, ...), as many of each.
        count = len(one.operands)
        return _in_hbm(one.shapes[count : 2 * count] or one.shapes)
    if one.opcode != "fusion":
        return _in_hbm(one.shapes)
    inner = program.computations[one.called[0]]
    results = inner.root
    if results.opcode == "tuple":
        made = [inner.instructions[name] for name in results.operands]
    else:
        made = [results]
    total = 0
    for shape, each in zip(one.shapes, made, strict=False):
        if each.opcode == "dynamic-update-slice":
            shape = inner.operand(each, 1).shape if shape.in_hbm else shape
        total += 0 if each.opcode == "parameter" else _in_hbm((shape,))
    return total
