"""Bytes that a program's operations read from and write to a chip's memory."""

from llama_cpt.planning.hlo import Computation, Instruction, Shape
from llama_cpt.planning.program import Program, Step

# They move nothing: names for memory, or the second half of what was counted at its start.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "opt-barrier",
}
_READS_PART = ("dynamic-slice", "slice", "gather")


def hbm_bytes(program: Program, steps: list[Step]) -> int:
    """Of one device a step: each operation's operands once and its result once.

    A fusion is one operation; of an operand that it only slices, the slices count, and of a result
    that it updates in place, the update. A kernel that reads an operand twice reads more than this:
    a lower bound.
    """
    total = 0
    for step in steps:
        one = step.instruction
        if step.fused or one.opcode in _FREE or one.opcode.endswith("-done"):
            continue
        total += step.times * (_read(program, step) + _written(program, step))
    return total


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _read(program: Program, step: Step) -> int:
    one = step.instruction
    known = step.computation.instructions
    operands = [known[name] for name in one.operands if name in known]
    if one.opcode in _READS_PART:
        return _in_hbm(one.shapes[:1]) if _in_hbm(operands[0].shapes) else 0
    if one.opcode == "dynamic-update-slice":
        return _in_hbm(operands[1].shapes)
    if one.opcode != "fusion":
        return sum(_in_hbm(operand.shapes) for operand in operands)
    inner = program.computations[one.called[0]]
    parameters = {
        int(each.inside): each for each in inner.instructions.values() if each.opcode == "parameter"
    }
    return sum(
        _part_read(inner, parameters[place], operand)
        for place, operand in enumerate(operands)
        if place in parameters
    )


def _part_read(inner: Computation, parameter: Instruction, operand: Instruction) -> int:
    """Of a fusion's operand: the slices taken where nothing else reads it."""
    whole = _in_hbm(operand.shapes)
    users = [each for each in inner.instructions.values() if parameter.name in each.operands]
    amount = 0
    for user in users:
        first = user.operands[0] == parameter.name
        if first and user.opcode in _READS_PART:
            amount += user.bytes
        elif not (first and user.opcode == "dynamic-update-slice") and not _hands_on(user):
            return whole
    return min(whole, amount)


def _hands_on(user: Instruction) -> bool:
    """A result that is an operand as it was."""
    return user.root and user.opcode == "tuple"


def _written(program: Program, step: Step) -> int:
    one = step.instruction
    if one.opcode == "dynamic-update-slice":
        return _in_hbm(step.computation.operand(one, 1).shapes)
    if one.opcode.endswith("-start"):
        # (what goes in, what comes out, ...): the second is what is made.
        return _in_hbm(one.shapes[1:2] or one.shapes)
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
