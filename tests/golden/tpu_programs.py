"""Figures of programs compiled for TPUs, kept so that a program compiles only once it changes.

A compiled program is a function of the lowered program, the devices, the compiler's options and the
compiler. ``tpu.json`` maps a hash of these to what the tests read. A program that is not in the
file is compiled, and the closing lines of the tests report it; ``python -m tests.golden.refresh``
brings the file up to date.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
from llama_cpt.training.compiler_options import TPU

# The property of a test that compiled a program.
COMPILED = "compiled for a TPU"
FILE = Path(__file__).with_name("tpu.json")
# The real function; tests replace ``compiling.compile_program`` and call this one.
COMPILE = compiling.compile_program


def key_of(lowered: jax.stages.Lowered, mesh: Mesh) -> str:
    """Return a hash of everything that the compiled program of ``lowered`` depends on."""
    devices = [
        (device.device_kind, device.coords, getattr(device, "slice_index", 0))
        for device in mesh.devices.flat
    ]
    parts = (
        lowered.as_text(debug_info=True),
        repr((dict(mesh.shape), devices)),
        repr(sorted(TPU.items())),
        os.environ.get("LIBTPU_INIT_ARGS", ""),
        version("libtpu"),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def encode(made: CompiledProgram | OutOfMemory) -> dict[str, Any]:
    """Return the figures as JSON values; equal buffers are stored once, with their number."""
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
    """Return the argument of ``encode``, except for the order of buffers of equal size."""
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
    """The figures of the file, and those that this process added."""

    stored: dict[str, dict[str, Any]]
    additions: Path | None = None
    """The folder for the figures that this process uses, if the file is being refreshed."""

    def compiler(self, test: pytest.Item) -> Callable[..., CompiledProgram | OutOfMemory]:
        """Return a substitute of ``compile_program`` for ``test``."""

        def compile_program(
            lowered: jax.stages.Lowered, mesh: Mesh
        ) -> CompiledProgram | OutOfMemory:
            key = key_of(lowered, mesh)
            return decode(self.recall(test, key, lambda: encode(COMPILE(lowered, mesh))))

        return compile_program

    def recall(
        self, test: pytest.Item, key: str, make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Return the figures under ``key``, or make them and mark ``test``."""
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
    """Return the stored figures by hash."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(programs: dict[str, dict[str, Any]], path: Path = FILE) -> None:
    """Write one program per line, in the order of the tests."""
    rows = sorted(programs.items(), key=lambda row: (row[1]["test"], row[0]))
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(values)}" for key, values in rows)
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
