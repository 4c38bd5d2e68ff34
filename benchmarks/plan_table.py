"""Figures in the table of docs/guide/plan.md, from compiled training steps.

    python -m benchmarks.plan_table [WORD ...] [--write]

The command compiles the step of each row of the table again and prints the row. If WORDs are given,
such as ``cpt_70b v6e``, only the rows that contain all of them are compiled. ``--write`` stores the
results in tests/golden/plan_table.json and updates the table on the page. The command needs libtpu
but no TPU.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
import json
from pathlib import Path
import sys
import time

import jax

from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.hardware.topologies import Topology, find_topology
from llama_cpt.plan import compiled_plan
from llama_cpt.planning.compiling import OutOfMemory
from llama_cpt.planning.step_plan import Plan
from llama_cpt.runtime.errors import one_line_errors
from llama_cpt.training.lowering import topology_program

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guide" / "plan.md"
FILE = ROOT / "tests" / "golden" / "plan_table.json"
SHIPPED = "as shipped"
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute")


@dataclass(frozen=True)
class Row:
    """A row of the table: the step of one config on one TPU slice."""

    name: str
    """The name of the file in configs/, without its suffix."""
    topology: Topology
    rows: str
    """The number of rows of tokens per device, or SHIPPED for the batch size of the config."""
    cells: tuple[str, ...]
    """The compiled figures, in the order of ``cells_of``."""

    @property
    def config(self) -> TrainConfig:
        """The config with the batch size of this row."""
        config = load_config(str(ROOT / "configs" / "llama3" / f"{self.name}.py"))
        if self.rows == SHIPPED:
            return config
        devices = self.topology.devices
        return replace(
            config,
            global_batch_size=int(self.rows) * devices,
            microbatch_size=0,
            evaluation=replace(config.evaluation, batch_size=devices),
        )

    @property
    def start(self) -> str:
        """The first cells of the Markdown line, which identify the row."""
        return f"| `{self.name}` | {self.topology.text} | {self.rows} |"

    @property
    def line(self) -> str:
        """The row as a line of Markdown."""
        return f"{self.start} {' | '.join(self.cells)} |"


def table() -> list[Row]:
    """Return all rows of the table, read from FILE."""
    return [
        Row(one["config"], find_topology(one["topology"]), one["rows"], tuple(one["cells"]))
        for one in json.loads(FILE.read_text(encoding="utf-8"))
    ]


def write(rows: list[Row]) -> None:
    """Write ``rows`` to FILE and to the table in PAGE."""
    lines = ",\n".join(
        json.dumps(
            {
                "config": row.name,
                "topology": row.topology.text,
                "rows": row.rows,
                "cells": row.cells,
            }
        )
        for row in rows
    )
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    PAGE.write_text("".join(with_table(PAGE.read_text(encoding="utf-8"), rows)), encoding="utf-8")


def with_table(page: str, rows: list[Row]) -> Iterator[str]:
    """Yield the lines of ``page``, in which the rows of the table are replaced by ``rows``."""
    left = [f"{row.line}\n" for row in rows]
    for line in page.splitlines(keepends=True):
        if line.startswith("| `"):
            yield from left
            left = []
        else:
            yield line


def compile_row(row: Row) -> tuple[Plan | OutOfMemory, float]:
    """Return the plan, and the seconds that lowering and compilation took."""
    config = row.config
    program = topology_program(config, row.topology.text)
    start = time.monotonic()
    return compiled_plan(config, row.topology, program), time.monotonic() - start


def cells_of(plan: Plan | OutOfMemory) -> list[str]:
    """Return the compiled figures of a plan as table cells.

    The first four cells are GB: the peak, the chip's memory, the parameters with their optimizer
    moments, and the temporaries. The remaining three cells are the TFLOPs, the GB received in each
    kind of collective, and the resource that limits the step in the roofline model, with the time
    per step in seconds.
    """
    if isinstance(plan, OutOfMemory):
        used, available = plan.used / 1e9, plan.available / 1e9
        return [f"does not fit: {used:.1f} of {available:.1f}", *["-"] * 6]
    memory = plan.memory
    held = (memory.parameters + memory.optimizer) / 1e9
    flops = plan.program.matrix.total
    sent = [
        sum(one.bytes for one in plan.program.collectives if one.kind == kind) / 1e9
        for kind in KINDS
    ]
    return [
        f"{memory.peak / 1e9:.2f}",
        f"{memory.available / 1e9:.1f}",
        f"{held:.2f}",
        f"{memory.temporaries / 1e9:.2f}",
        f"{flops / 1e12:.1f} ({flops / plan.model_flops:.3f})",
        ", ".join(f"{amount:.2f}" for amount in sent),
        f"{plan.roofline.bound}, {plan.roofline.overlapped_seconds:.3g}",
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    rows = table()
    for number, row in enumerate(rows):
        if not all(word in row.start for word in options.words):
            continue
        plan, seconds = compile_row(row)
        rows[number] = replace(row, cells=tuple(cells_of(plan)))
        print(rows[number].line, f"({seconds:.0f} s)", flush=True)
        if options.write:
            write(rows)
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
