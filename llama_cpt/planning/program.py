"""The instructions of a compiled program, each with the number of times that it runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
import re

from llama_cpt.planning.hlo import Computation, Instruction, read_computations

# Instructions that run the computations that they name. Others, such as a reduction, name a scalar
# computation, which is not a step of its own.
CALLERS = ("fusion", "call", "while", "conditional", "async-start")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SAME = ("copy", "bitcast", "convert", "reshape")

# A value (factor, offset) that stands for factor * counter + offset; a constant has factor 0.
Linear = tuple[int, int]


@dataclass(frozen=True)
class HloStep:
    """An instruction in its computation, with the number of times that it runs per step."""

    instruction: Instruction
    computation: Computation = field(repr=False)
    times: int
    fused: bool
    """Whether it is part of a fusion, so that its result is never written to memory."""


@dataclass
class HloModule:
    """A compiled HLO module."""

    computations: dict[str, Computation] = field(repr=False)
    entry: str
    uncounted_loops: list[str] = field(default_factory=list)
    """Loops with an unknown trip count, which are counted as one trip."""

    def steps(self) -> list[HloStep]:
        """Return every instruction that runs, those in loops and called computations included."""
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
    """Parse the text of a compiled module, as ``compiled.as_text()`` returns it."""
    return HloModule(*read_computations(text))


def trip_count(
    loop: Instruction, around: Computation, computations: Mapping[str, Computation]
) -> int | None:
    """Return the trip count of a while loop in computation ``around``, or None if it is unknown.

    The counter must be compared with a constant and grow by a constant, which is 2 in a loop that
    the compiler unrolled twice. Its initial value is 0 unless a constant is found.
    """
    # Most loops carry the count in their backend_config; those that the compiler made by unrolling
    # or pipelining another loop do not.
    if known := _TRIPS.search(loop.attributes):
        return int(known[1])
    condition, body = (
        computations[re.search(rf"\b{part}=%?([\w.\-]+)", loop.attributes)[1]]
        for part in ("condition", "body")
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
    """Return element ``index`` of the initial loop state if it is a constant."""
    found = _linear(around, initial[index], None, computations) if index < len(initial) else None
    return found[1] if found and found[0] == 0 else None


def _comparison(
    condition: Computation, computations: Mapping[str, Computation]
) -> tuple[int, int | str, bool] | None:
    """Parse a loop condition into (index of the counter in the state, limit, inclusive).

    The limit is text if it is an element of the state: the index of that element. The comparison
    may be inside a fusion, whose parameters are then mapped back to its operands.
    """
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
    """Return the value ``name`` as a linear function of the counter, or None if it is not one.

    The counter is element ``counter`` of the loop state. ``bound`` has the values of the parameters
    of a fusion by number.
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
