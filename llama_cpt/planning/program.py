"""The instructions of a compiled program, each with the number of times that it runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
import re

from llama_cpt.planning.hlo import Computation, Instruction, read_computations

# They run the computations that they name; others name small ones, such as a sum's addition.
CALLERS = ("fusion", "call", "while", "conditional", "async-start")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SAME = ("copy", "bitcast", "convert", "reshape")

# A whole number, or the loop's counter and a whole number: (times the counter, plus).
Linear = tuple[int, int]


@dataclass(frozen=True)
class HloStep:
    """An instruction where it stands, and how often a run of the program comes by."""

    instruction: Instruction
    computation: Computation = field(repr=False)
    times: int
    fused: bool
    """Part of a larger operation: what it makes never lies in memory."""


@dataclass
class HloModule:
    """A compiled module."""

    computations: dict[str, Computation] = field(repr=False)
    entry: str
    uncounted_loops: list[str] = field(default_factory=list)
    """Loops of unknown length, taken once."""

    def steps(self) -> list[HloStep]:
        """Every instruction that runs, loops and called computations opened."""
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
    """From ``compiled.as_text()``."""
    return HloModule(*read_computations(text))


def trip_count(
    loop: Instruction, around: Computation, computations: Mapping[str, Computation]
) -> int | None:
    """Of a while loop that stands in ``around``; None where its counter cannot be followed.

    A counter starts at a constant (0 where none is found), is held to a constant and grows by a
    constant: by 2 in a loop that the compiler unrolled twice.
    """
    if known := _TRIPS.search(loop.attributes):
        return int(known[1])
    condition, body = (
        computations[re.search(rf"\b{part}=%?([\w.\-]+)", loop.attributes)[1]]
        for part in ("condition", "body")
    )
    names = around.instructions
    given = names[loop.operands[0]].operands if loop.operands[0] in names else ()
    compared = _comparison(condition, computations)
    if compared is None:
        return None
    counter, limit, inclusive = compared
    if isinstance(limit, str):
        limit = _constant(around, given, int(limit), computations)
    grown = _linear(body, body.root.operands[counter], counter, computations)
    if limit is None or grown is None or grown[0] != 1 or grown[1] < 1:
        return None
    start = _constant(around, given, counter, computations) or 0
    return max(-(-(limit + inclusive - start) // grown[1]), 0)


def _constant(
    around: Computation, given: tuple[str, ...], place: int, computations: Mapping[str, Computation]
) -> int | None:
    """What a loop is given at ``place``, if that is a constant."""
    found = _linear(around, given[place], None, computations) if place < len(given) else None
    return found[1] if found and found[0] == 0 else None


def _comparison(
    condition: Computation, computations: Mapping[str, Computation]
) -> tuple[int, int | str, bool] | None:
    """(place of the counter in the state, limit, or its place as text, whether it is reached)."""
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
    """A value as a multiple of the counter, at ``counter`` in the state, and a constant.

    ``bound`` are the values of a fusion's parameters.
    """
    one = computation.instructions[name]

    def of(place: int) -> Linear | None:
        return _linear(computation, one.operands[place], counter, computations, bound)

    if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.inside):
        return 0, int(one.inside)
    if one.opcode == "get-tuple-element" and one.attribute("index") == str(counter):
        return 1, 0
    if one.opcode == "parameter" and bound is not None:
        return bound.get(int(one.inside))
    if one.opcode in _SAME:
        return of(0)
    if one.opcode in ("add", "subtract"):
        left, right = of(0), of(1)
        sign = 1 if one.opcode == "add" else -1
        return (left[0] + sign * right[0], left[1] + sign * right[1]) if left and right else None
    if one.opcode == "fusion":
        inner = computations[one.called[0]]
        values = {place: of(place) for place in range(len(one.operands))}
        return _linear(inner, inner.root.name, counter, computations, values)
    return None
