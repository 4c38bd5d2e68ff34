"""A lowered program compiled for a TPU, and the figures that are read from the result."""

from dataclasses import dataclass
from pathlib import Path
import tempfile

import jax
from jax.sharding import Mesh

from llama_cpt.planning.buffers import Peak, peak_of
from llama_cpt.planning.collectives import Collective, collectives
from llama_cpt.planning.hbm_traffic import hbm_bytes
from llama_cpt.planning.matrix_flops import MatrixFlops, matrix_flops
from llama_cpt.planning.out_of_memory import OutOfMemory, parse_out_of_memory
from llama_cpt.planning.program import read_module


@dataclass(frozen=True)
class ProgramFigures:
    """What a compiled program does on one device, read from its text."""

    matrix: MatrixFlops
    hbm_bytes: int
    collectives: tuple[Collective, ...]
    live: Peak
    """Arrays at the peak, by a walk of the schedule."""
    uncounted_loops: tuple[str, ...]


@dataclass(frozen=True)
class CompiledProgram:
    """Bytes of one device as the compiler reports them, and what the program does."""

    arguments: int
    """Padding included."""
    temporaries: int
    aliased: int
    """Arguments whose place results take."""
    code: int
    peak: int
    """The most at once, arguments included."""
    program: ProgramFigures


def compile_program(lowered: jax.stages.Lowered, mesh: Mesh) -> CompiledProgram | OutOfMemory:
    """Compile ``lowered`` for the devices of ``mesh`` and read the result.

    TooLarge if the program needs more memory than the chip has.
    """
    made = compile_with_text(lowered)
    if isinstance(made, OutOfMemory):
        return made
    compiled, text = made
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
    """Compile ``lowered`` and return the result with its text.

    The text is the one that the compiler writes itself: ``as_text()`` goes through the reader of
    jaxlib, which (JAX 0.10) refuses programs with several arrays in one asynchronous operation, as
    the steps for v5p are.
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
    """Read the text of a program that was compiled for a mesh of these axis sizes."""
    program = read_module(text)
    steps = program.steps()
    return ProgramFigures(
        matrix_flops(steps),
        hbm_bytes(program, steps),
        tuple(collectives(steps, mesh)),
        peak_of(program),
        tuple(program.uncounted_loops),
    )
