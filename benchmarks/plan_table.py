"""The table of docs/plan.md, compiled anew.

    python -m benchmarks.plan_table [WORD ...] [--write]

WORDs pick the rows that hold all of them (``cpt_70b v6e``); ``--write`` puts them into the page.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
import sys
import time

import jax

from llama_cpt.config import TrainConfig
from llama_cpt.config_file import load
from llama_cpt.errors import one_line_errors
from llama_cpt.plan import compiled_plan
from llama_cpt.planning.out_of_memory import TooLarge
from llama_cpt.planning.step_plan import Plan
from llama_cpt.planning.topologies import Topology, find_topology
from llama_cpt.training.ahead_of_time import topology_program

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "plan.md"
SHIPPED = "as shipped"
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute")


@dataclass(frozen=True)
class Row:
    """A line of the table: ``config`` on ``topology``, some rows a device in one micro-batch."""

    name: str
    topology: Topology
    rows: str
    """A number, or SHIPPED: as the config has it."""
    cells: tuple[str, ...]
    """What was measured."""

    @property
    def config(self) -> TrainConfig:
        config = load(str(ROOT / "configs" / f"{self.name}.py"))
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
        """What the line begins with."""
        return f"| `{self.name}` | {self.topology.text} | {self.rows} |"


def table() -> list[Row]:
    """Every row of the page's table."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("| `") and len(cells) > 3 and ":" in cells[1]:
            topology = find_topology(cells[1])
            found.append(Row(cells[0].strip("`"), topology, cells[2], tuple(cells[3:])))
    return found


def compile_row(row: Row) -> tuple[Plan | TooLarge, float]:
    """The plan, and the seconds that lowering and compiling took."""
    config = row.config
    program = topology_program(config, row.topology.text)
    start = time.monotonic()
    return compiled_plan(config, row.topology, program), time.monotonic() - start


def cells_of(plan: Plan | TooLarge) -> list[str]:
    """Peak, chip, parameters and moments, temporaries; FLOPs; collectives; bound and seconds."""
    if isinstance(plan, TooLarge):
        asked, given = plan.used / 1e9, plan.available / 1e9
        return [f"does not fit: {asked:.1f} of {given:.1f}", *["-"] * 6]
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
        f"{plan.roofline.bound}, {plan.roofline.overlapped:.3g}",
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    for row in table():
        if not all(word in row.start for word in options.words):
            continue
        plan, seconds = compile_row(row)
        line = f"{row.start} {' | '.join(cells_of(plan))} |"
        print(line, f"({seconds:.0f} s)", flush=True)
        if options.write:
            lines = PAGE.read_text(encoding="utf-8").splitlines()
            lines = [line if old.startswith(row.start) else old for old in lines]
            PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
