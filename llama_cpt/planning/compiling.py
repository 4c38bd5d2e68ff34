"""A lowered program compiled for a TPU, and the figures that are read from the result."""

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

UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


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


@dataclass(frozen=True)
class OutOfMemory:
    """What did not fit, in bytes."""

    used: int
    """At least: of some programs the compiler tells temporaries alone, and of no array."""
    available: int
    arrays: tuple[tuple[int, str, str], ...]
    """The largest: bytes, shape, the model's operation that made it."""


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


def parse_out_of_memory(message: str) -> OutOfMemory | None:
    """From an error's text; None where it tells of something else."""
    told = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", message) or re.search(
        r"temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message
    )
    if "RESOURCE_EXHAUSTED" not in message or not told:
        return None
    arrays = []
    for part in re.split(r"\n\s*\d+\. Size: ", message)[1:]:
        size = re.match(r"[\d.]+\w", part)
        shape = re.search(r"Shape: (\w+\[[\d,]*\])", part)
        origin = re.search(r'op_name="([^"]*)"', part)
        if size and shape:
            arrays.append((_bytes(size[0]), shape[1], origin[1] if origin else ""))
    return OutOfMemory(_bytes(told[1]), _bytes(told[2]), tuple(arrays))


def _bytes(text: str) -> int:
    """``15.75G``."""
    return round(float(text[:-1]) * UNITS[text[-1].upper()])
