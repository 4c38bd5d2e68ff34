"""Stored figures of programs compiled for TPUs, so that a test compiles only what has changed.

A compiled program depends on the lowered program, the devices, the compiler's options and the
compiler's version. Its figures also depend on the code that reads the compiled program's text. A
key in ``tpu.json`` contains a hash of all of these, and its value is the figures. If a program's
key is not in the file, the test compiles the program, and pytest reports that at the end of its
output. ``python -m tests.golden.refresh`` updates the file.
"""

import ast
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
import functools
import hashlib
from importlib.metadata import version
import json
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
import pytest

from llama_cpt.config.fields import from_dict
from llama_cpt.planning import compiling
from llama_cpt.planning.buffers import Buffer, Peak
from llama_cpt.planning.collectives import Collective
from llama_cpt.planning.compiling import CompiledProgram, OutOfMemory, ProgramFigures
from llama_cpt.planning.hlo import Shape
from llama_cpt.planning.matrix_flops import MatrixFlops
from llama_cpt.training.program import TPU_OPTIONS

# Name of the user property that pytest records for a test that compiled a program.
COMPILED = "compiled for a TPU"
FILE = Path(__file__).with_name("tpu.json")
# The real function. Fixtures replace ``compiling.compile_program`` and call this one.
COMPILE = compiling.compile_program
# The files that read a compiled program's text and define the figures.
READERS = tuple(
    Path(compiling.__file__).with_name(f"{name}.py")
    for name in (
        "buffers",
        "collectives",
        "compiling",
        "hbm_traffic",
        "hlo",
        "matrix_flops",
        "program",
    )
)


def key_of(lowered: jax.stages.Lowered, mesh: Mesh) -> str:
    """Return the key of a program's figures: ``program_hash`` and the digest of ``READERS``."""
    return f"{program_hash(lowered, mesh)}-{code_digest(*READERS)}"


def program_hash(lowered: jax.stages.Lowered, mesh: Mesh) -> str:
    """Return a hash of everything on which the compiled program of ``lowered`` depends."""
    devices = [
        (device.device_kind, device.coords, getattr(device, "slice_index", 0))
        for device in mesh.devices.flat
    ]
    parts = (
        lowered.as_text(debug_info=True),
        repr((dict(mesh.shape), devices)),
        repr(sorted(TPU_OPTIONS.items())),
        os.environ.get("LIBTPU_INIT_ARGS", ""),
        version("libtpu"),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@functools.cache
def code_digest(*files: Path) -> str:
    """Return a digest of the statements in Python files.

    Comments, docstrings and formatting do not change the digest.
    """
    return hashlib.sha256(b"".join(map(_statements, files))).hexdigest()[:8]


def _statements(file: Path) -> bytes:
    """Return the source of a Python file, unparsed without its comments and docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [one for one in node.body if not _is_text(one)] or [ast.Pass()]
    return ast.unparse(tree).encode()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def encode(made: CompiledProgram | OutOfMemory) -> dict[str, Any]:
    """Return the figures as a JSON object.

    Equal buffers are stored as one entry with their number.
    """
    if isinstance(made, OutOfMemory):
        return json.loads(json.dumps({"too_large": asdict(made)}))
    values = asdict(made)
    counted = Counter(made.program.live.buffers)
    values["program"]["live"]["buffers"] = [
        [count, str(one.shape), one.shape.layout, one.origin, one.carried]
        for one, count in sorted(counted.items(), key=str)
    ]
    return json.loads(json.dumps(values))


def decode(values: dict[str, Any]) -> CompiledProgram | OutOfMemory:
    """Return the figures from which ``encode`` made ``values``.

    The order of buffers of equal size can differ.
    """
    if "too_large" in values:
        return from_dict(OutOfMemory, values["too_large"])
    program = values["program"]
    buffers = [
        Buffer(_shape(shape, layout), origin, carried)
        for count, shape, layout, origin, carried in program["live"]["buffers"]
        for _ in range(count)
    ]
    buffers.sort(key=lambda one: -one.bytes)
    read = ProgramFigures(
        matrix=MatrixFlops(**program["matrix"]),
        hbm_bytes=program["hbm_bytes"],
        collectives=from_dict(tuple[Collective, ...], program["collectives"]),
        live=Peak(program["live"]["bytes"], tuple(buffers)),
        uncounted_loops=tuple(program["uncounted_loops"]),
    )
    return CompiledProgram(**{**values, "program": read})


def _shape(text: str, layout: str) -> Shape:
    dtype, _, dims = text.rstrip("]").partition("[")
    return Shape(dtype, tuple(int(size) for size in dims.split(",") if size), layout)


@dataclass
class Goldens:
    """The figures of ``tpu.json`` and those that this process has added."""

    stored: dict[str, dict[str, Any]]
    """Figures by key."""
    additions: Path | None = None
    """Folder to which the process writes the figures that it uses; None except in a refresh."""

    def compiler(self, test: pytest.Item) -> Callable[..., CompiledProgram | OutOfMemory]:
        """Return a replacement for ``compile_program`` that returns stored figures to ``test``."""

        def compile_program(
            lowered: jax.stages.Lowered, mesh: Mesh
        ) -> CompiledProgram | OutOfMemory:
            key = key_of(lowered, mesh)
            return decode(self.recall(test, key, lambda: encode(COMPILE(lowered, mesh))))

        return compile_program

    def recall(
        self, test: pytest.Item, key: str, make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the figures stored under ``key``.

        If there are none, calls ``make`` for the figures and records the property COMPILED in
        ``test``.
        """
        if key not in self.stored:
            self.stored[key] = {"test": test.nodeid.partition("[")[0], **make()}
            test.user_properties.append((COMPILED, key))
        self._note(key)
        return {name: value for name, value in self.stored[key].items() if name != "test"}

    def _note(self, key: str) -> None:
        if self.additions:
            with (self.additions / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: self.stored[key]}) + "\n")


def read(path: Path = FILE) -> dict[str, dict[str, Any]]:
    """Return the figures stored in ``path``, by key; empty if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(programs: dict[str, dict[str, Any]], path: Path = FILE) -> None:
    """Write figures to ``path``, one program per line, sorted by the test that uses them."""
    rows = sorted(programs.items(), key=lambda row: (row[1]["test"], row[0]))
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(values)}" for key, values in rows)
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
