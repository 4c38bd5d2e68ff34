"""Ahead-of-time compilation of a lowered program for a TPU, and the figures of the result."""

from dataclasses import dataclass
from pathlib import Path
import re
import tempfile

import jax
from jax.sharding import Mesh

from llama_cpt.planning.buffers import Peak, peak_of
from llama_cpt.planning.collectives import Collective, collectives
from llama_cpt.planning.hbm_traffic import hbm_bytes
from llama_cpt.planning.matrix_flops import MatrixFlops, matrix_flops
from llama_cpt.planning.program import read_module

# Units in the compiler's messages are binary: 15.75G is 15.75 GiB.
UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class ProgramFigures:
    """The work of a compiled program on one device, read from its HLO text."""

    matrix: MatrixFlops
    hbm_bytes: int
    collectives: tuple[Collective, ...]
    live: Peak
    """Arrays that are live at the peak, estimated by liveness analysis."""
    uncounted_loops: tuple[str, ...]


@dataclass(frozen=True)
class CompiledProgram:
    """Bytes of one device as the compiler reports them, and the figures of the program."""

    arguments: int
    """Bytes of the arguments, padding included."""
    temporaries: int
    aliased: int
    """Bytes of the arguments whose buffers the results reuse (donated arguments)."""
    code: int
    peak: int
    """Peak bytes, arguments included."""
    program: ProgramFigures


@dataclass(frozen=True)
class OutOfMemory:
    """The compiler's refusal of a program that needs more memory than the chip has, in bytes."""

    used: int
    """Lower bound: for some programs the compiler reports temporaries only, and no arrays."""
    available: int
    arrays: tuple[tuple[int, str, str], ...]
    """The largest arrays: bytes, shape, the JAX operation that allocated it."""


def compile_program(lowered: jax.stages.Lowered, mesh: Mesh) -> CompiledProgram | OutOfMemory:
    """Compile ``lowered`` for the devices of ``mesh`` and read the result.

    Returns OutOfMemory if the program needs more memory than the chip has.
    """
    result = compile_with_text(lowered)
    if isinstance(result, OutOfMemory):
        return result
    compiled, text = result
    memory = compiled.memory_analysis()
    return CompiledProgram(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        program=read_step(text, dict(mesh.shape)),
    )


def compile_with_text(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str] | OutOfMemory:
    """Compile ``lowered`` and return the executable with its HLO text.

    The text is a dump of the compiler. ``as_text()`` goes through jaxlib's own parser, which in JAX
    0.10 rejects asynchronous operations on several arrays, such as those in the steps for v5p.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_module_re": "jit_"}
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            refused = parse_out_of_memory(str(error))
            if refused is None:
                raise
            return refused
        (text,) = Path(folder).glob("*.after_optimizations.txt")
        return compiled, text.read_text()


def read_step(text: str, mesh: dict[str, int]) -> ProgramFigures:
    """Read the figures of a program from its text; ``mesh`` has the sizes of the mesh axes."""
    program = read_module(text)
    steps = program.steps()
    return ProgramFigures(
        matrix_flops(steps),
        hbm_bytes(program, steps),
        tuple(collectives(steps, mesh)),
        peak_of(program),
        tuple(program.uncounted_loops),
    )


def parse_out_of_memory(message: str) -> OutOfMemory | None:
    """Parse the message of a compiler error; return None if it is not about memory."""
    # The compiler has two messages: one after buffer assignment, which lists the largest arrays,
    # and an early one, as soon as the temporaries alone exceed the memory.
    figures = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", message) or re.search(
        r"temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message
    )
    if "RESOURCE_EXHAUSTED" not in message or not figures:
        return None
    arrays = []
    for part in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = re.match(r"[\d.]+\w", part)
        shape = re.search(r"Shape: (\w+\[[\d,]*\])", part)
        origin = re.search(r'op_name="([^"]*)"', part)
        if size and shape:
            arrays.append((_bytes(size[0]), shape[1], origin[1] if origin else ""))
    return OutOfMemory(_bytes(figures[1]), _bytes(figures[2]), tuple(arrays))


def _bytes(text: str) -> int:
    """Parse ``15.75G`` into bytes."""
    return round(float(text[:-1]) * UNITS[text[-1].upper()])
