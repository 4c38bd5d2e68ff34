"""Instructions of a compiled program, with the number of times that each instruction runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
import re

from llama_cpt.planning.hlo import Computation, Instruction, read_computations

# Opcodes of the instructions that run the computations that they name. Other instructions, such as
# reduce, name a scalar function; its instructions are not counted separately.
CALLERS = ("fusion", "call", "while", "conditional", "async-start")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Opcodes that do not change the value of a scalar integer.
_SAME = ("copy", "bitcast", "convert", "reshape")

# A pair (factor, offset) for the value factor * counter + offset. The factor of a constant is 0.
Linear = tuple[int, int]


@dataclass(frozen=True)
class HloStep:
    """An instruction, its computation, and its number of executions per call of the program."""

    instruction: Instruction
    computation: Computation = field(repr=False)
    times: int
    fused: bool
    """True if the instruction is inside a fusion, so that its result is not written to HBM."""


@dataclass
class HloModule:
    """A compiled HLO module."""

    computations: dict[str, Computation] = field(repr=False)
    entry: str
    """Name of the computation that runs first."""
    uncounted_loops: list[str] = field(default_factory=list)
    """Names of the loops whose trip count is unknown, set by ``steps``. One trip is assumed."""

    def steps(self) -> list[HloStep]:
        """Return every instruction that runs, including those in loops and called computations."""
        self.uncounted_loops.clear()
        return list(self._inside(self.entry, 1, False))

    def _inside(self, name: str, times: int, fused: bool) -> Iterator[HloStep]:
        computation = self.computations[name]
        for one in computation.instructions.values():
            yield HloStep(one, computation, times, fused)
            if one.opcode not in CALLERS:
                continue
            within = times * (self._trips(one, computation) if one.opcode == "while" else 1)
            for called in one.called:
                yield from self._inside(called, within, fused or one.opcode == "fusion")

    def _trips(self, loop: Instruction, around: Computation) -> int:
        found = trip_count(loop, around, self.computations)
        if found is None:
            self.uncounted_loops.append(loop.name)
        return 1 if found is None else found


def read_module(text: str) -> HloModule:
    """Parse HLO text, as ``compiled.as_text()`` prints it, and return the module."""
    return HloModule(*read_computations(text))


def trip_count(
    loop: Instruction, around: Computation, computations: Mapping[str, Computation]
) -> int | None:
    """Return the trip count of ``loop``, a while instruction of computation ``around``.

    Returns None unless the loop condition compares a counter with a constant and the body adds a
    constant increment to the counter. The increment is 2 if the compiler unrolled the loop by a
    factor of 2. If the initial value of the counter is not a known constant, 0 is assumed.
    """
    # Most loops have the trip count in their backend_config. Loops that the compiler creates by
    # unrolling or pipelining a loop do not.
    if known := _TRIPS.search(loop.attributes):
        return int(known[1])
    condition, body = (
        computations[loop.attribute(part).lstrip("%")] for part in ("condition", "body")
    )
    names = around.instructions
    initial = names[loop.operands[0]].operands if loop.operands[0] in names else ()
    comparison = _comparison(condition, computations)
    if comparison is None:
        return None
    counter, limit, inclusive = comparison
    if isinstance(limit, str):
        limit = _constant(around, initial, int(limit), computations)
    updated = _linear(body, body.root.operands[counter], counter, computations)
    if limit is None or updated is None or updated[0] != 1 or updated[1] < 1:
        return None
    start = _constant(around, initial, counter, computations) or 0
    return max(-(-(limit + inclusive - start) // updated[1]), 0)


def _constant(
    around: Computation,
    initial: tuple[str, ...],
    index: int,
    computations: Mapping[str, Computation],
) -> int | None:
    """Return the constant value of element ``index`` of the initial loop state.

    ``initial`` contains the names of the elements in computation ``around``. Returns None if the
    element is not a constant.
    """
    found = _linear(around, initial[index], None, computations) if index < len(initial) else None
    return found[1] if found and found[0] == 0 else None


def _comparison(
    condition: Computation, computations: Mapping[str, Computation]
) -> tuple[int, int | str, bool] | None:
    """Parse a loop condition ``counter < limit`` or ``counter <= limit``.

    Returns (index, limit, inclusive). ``index`` is the counter's index in the loop state. If the
    limit is a constant, ``limit`` is this constant as an int. If the limit is an element of the
    loop state, ``limit`` is the element's index as a str. Returns None if the condition has a
    different form.
    """
    # If the comparison is inside a fusion, its operands are parameters of the fusion, which are
    # replaced by the operands of the fusion.
    root, names = condition.root, condition.instructions
    operands = [names[name] for name in root.operands]
    direction = root
    if root.opcode == "fusion":
        direction = computations[root.called[0]].root
        inner = computations[root.called[0]].instructions
        order = [inner[name] for name in direction.operands]
        if any(one.opcode != "parameter" for one in order):
            return None
        operands = [operands[int(one.inside)] for one in order]
    match = re.search(r"direction=(LT|LE)", direction.attributes)
    if direction.opcode != "compare" or not match or operands[0].opcode != "get-tuple-element":
        return None
    counter, inclusive = int(operands[0].attribute("index")), match[1] == "LE"
    if operands[1].opcode == "get-tuple-element":
        return counter, operands[1].attribute("index"), inclusive
    limit = _linear(condition, operands[1].name, None, computations)
    return (counter, limit[1], inclusive) if limit else None


def _linear(
    computation: Computation,
    name: str,
    counter: int | None,
    computations: Mapping[str, Computation],
    bound: Mapping[int, Linear | None] | None = None,
) -> Linear | None:
    """Return the value of instruction ``name`` as a linear function of the loop counter.

    The counter is element ``counter`` of the loop state. In a fusion, ``bound`` maps the number of
    a parameter to the value of the parameter. Returns None if the value of ``name`` is not a linear
    function of the counter.
    """
    one = computation.instructions[name]

    def operand(index: int) -> Linear | None:
        return _linear(computation, one.operands[index], counter, computations, bound)

    if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.inside):
        return 0, int(one.inside)
    if one.opcode == "get-tuple-element" and one.attribute("index") == str(counter):
        return 1, 0
    if one.opcode == "parameter" and bound is not None:
        return bound.get(int(one.inside))
    if one.opcode in _SAME:
        return operand(0)
    if one.opcode in ("add", "subtract"):
        left, right = operand(0), operand(1)
        sign = 1 if one.opcode == "add" else -1
        return (left[0] + sign * right[0], left[1] + sign * right[1]) if left and right else None
    if one.opcode == "fusion":
        inner = computations[one.called[0]]
        values = {index: operand(index) for index in range(len(one.operands))}
        return _linear(inner, inner.root.name, counter, computations, values)
    return None
