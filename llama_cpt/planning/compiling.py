"""Ahead-of-time compilation for TPUs, and the memory and cost of the compiled program."""

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

# Bytes per unit in the compiler's messages. The units are binary: 15.75G is 15.75 GiB.
UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class ProgramFigures:
    """The cost of a compiled program per device and call, computed from its HLO text."""

    matrix: MatrixFlops
    hbm_bytes: int
    """Bytes that the program reads from and writes to HBM."""
    collectives: tuple[Collective, ...]
    live: Peak
    """The arrays that are live at the peak, as estimated by a liveness analysis."""
    uncounted_loops: tuple[str, ...]
    """Names of loops with an unknown trip count. The bodies of these loops are counted once."""


@dataclass(frozen=True)
class CompiledProgram:
    """The memory of a compiled program in bytes per device, and its cost."""

    arguments: int
    """Bytes of the program's arguments, including the padding of their layouts."""
    temporaries: int
    aliased: int
    """Bytes of the donated arguments whose buffers the results reuse."""
    code: int
    peak: int
    """Peak bytes, including the arguments."""
    program: ProgramFigures


@dataclass(frozen=True)
class OutOfMemory:
    """Contents of the compiler error for a program that needs more memory than the chip has."""

    used: int
    """Bytes that the program needs per device. The value is a lower bound, because for some
    programs the compiler reports only the temporaries."""
    available: int
    """Bytes of the chip's memory that a program can use."""
    arrays: tuple[tuple[int, str, str], ...]
    """The largest arrays as (bytes, shape, JAX operation); empty if the compiler lists none."""


def compile_program(lowered: jax.stages.Lowered, mesh: Mesh) -> CompiledProgram | OutOfMemory:
    """Compile ``lowered`` for the devices of ``mesh`` and return the program's memory and cost.

    Returns OutOfMemory if the program needs more memory than the chip has. Raises
    ``jax.errors.JaxRuntimeError`` if the compilation fails for a different reason.
    """
    result = compile_with_text(lowered)
    if isinstance(result, OutOfMemory):
        return result
    compiled, text = result
    memory = compiled.memory_analysis()
    assert memory is not None
    return CompiledProgram(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        program=read_step(text, dict(mesh.shape)),
    )


def compile_with_text(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str] | OutOfMemory:
    """Compile ``lowered`` and return the executable and its HLO text.

    Returns OutOfMemory if the program needs more memory than the chip has.
    """
    # The text is read from a dump of the compiler. In JAX 0.10, ``compiled.as_text()`` parses the
    # program with jaxlib, whose parser rejects asynchronous operations on several arrays. Programs
    # for v5p contain such operations.
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, str | bool] = {
            "xla_dump_to": folder,
            "xla_dump_hlo_module_re": "jit_",
        }
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
    """Return the cost of a program from its HLO text; ``mesh`` maps axis names to sizes."""
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
    """Parse the message of a compiler error.

    Returns None if the message does not report that the program exceeds the chip's memory.
    """
    # The compiler has two messages. The first is raised after buffer assignment and lists the
    # largest arrays. The second is raised earlier, if the temporaries alone exceed the memory.
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
    """Return the number of bytes that a size such as ``15.75G`` stands for."""
    return round(float(text[:-1]) * UNITS[text[-1].upper()])
