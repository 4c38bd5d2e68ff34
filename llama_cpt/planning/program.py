"""A compiled program's instructions, each with how often it runs."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from llama_cpt.planning.hlo import Computation, Instruction, read_computations
from llama_cpt.planning.loops import trip_count

# They run the computations that they name; others name small ones, such as a sum's addition.
CALLERS = ("fusion", "call", "while", "conditional", "async-start")


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
