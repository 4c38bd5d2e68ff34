"""Analytic memory and time of a step on 8 to 8,192 chips: the tables of docs/notes/scaling.md.

    python -m benchmarks.scaling [--chip v5p]

Nothing is compiled: ``planning.analytic`` gives lower bounds. In each micro-batch, weights are
gathered forward and backward, in bfloat16, and gradients are scattered and summed over slices, in
float32. The last table has the rows of docs/guide/plan.md's table, with the compiler's figures next
to the analytic ones of the same step.
"""

import argparse
from dataclasses import dataclass, replace
import math
from pathlib import Path

from benchmarks.plan_table import Row, table
from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import ModelConfig, TrainConfig
from llama_cpt.hardware.topologies import FAMILIES, Topology, shapes_of
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.planning.analytic import analytic_memory, parameters

CONFIG = str(Path(__file__).resolve().parents[1] / "configs" / "cpt_70b.py")
CHIPS = (8, 32, 128, 512, 2048, 8192)
ROWS = 1024
"""Rows per step, of 8,192 tokens each: 8.4 million tokens."""


@dataclass(frozen=True)
class Point:
    """The step of one model on one topology."""

    topology: Topology
    tensor: int
    """Number of chips that share a row, if there are more chips than rows."""
    config: TrainConfig

    @property
    def mesh(self) -> dict[str, int]:
        slices = self.topology.slices
        fsdp = self.topology.devices // slices // self.tensor
        return {"replica": slices, "fsdp": fsdp, "tensor": self.tensor}

    @property
    def tokens(self) -> int:
        """Number of tokens per step."""
        return self.config.global_batch_size * self.config.data.sequence_length

    @property
    def flops(self) -> float:
        """FLOPs of matrix products per device and step."""
        rate = model_flops_per_token(self.config.model, self.config.data.sequence_length)
        return self.tokens * rate * 4 / 3 / self.topology.devices

    @property
    def links(self) -> float:
        """Bytes that a device receives from its slice per step."""
        model, mesh = self.config.model, self.mesh
        weights = parameters(model) / self.tensor * (1 - 1 / mesh["fsdp"])
        # Forward, recomputed forward and backward: each sums a layer's output twice.
        share = 2 * (self.tensor - 1) / self.tensor
        local = self.tokens / (mesh["replica"] * mesh["fsdp"])
        sums = 6 * share * local * model.embed_dim * 2 * model.num_layers
        return self.config.num_microbatches * (2 * 2 + 4) * weights + sums

    @property
    def network(self) -> float:
        """Bytes that a device receives from other slices per step."""
        slices = self.topology.slices
        share = parameters(self.config.model) / self.tensor / self.mesh["fsdp"]
        return self.config.num_microbatches * 2 * 4 * share * (slices - 1) / slices

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of matrix products, links and network, each alone."""
        chip = self.topology.chip
        return {
            "matrix": self.flops / chip.peak_flops,
            "ICI": self.links / chip.ici_bandwidth,
            "DCN": self.network / chip.dcn_bandwidth,
        }


def model_405b(base: ModelConfig) -> ModelConfig:
    """Return the shape of Llama-3.1 405B, from its ``config.json``."""
    return replace(base, embed_dim=16384, mlp_dim=53248, num_layers=126, num_heads=128)


def points(model: ModelConfig, family: str) -> list[Point]:
    """Return the steps of ``model`` on the chips of CHIPS."""
    config = replace(load_config(CONFIG), model=model, global_batch_size=ROWS)
    found = []
    for chips in CHIPS:
        topology = _topology(family, chips)
        tensor = max(1, math.ceil(topology.devices / ROWS))
        microbatch = topology.devices // tensor
        found.append(Point(topology, tensor, replace(config, microbatch_size=microbatch)))
    return found


def _topology(family: str, chips: int) -> Topology:
    """Return the topology of the fewest slices that has ``chips`` chips."""
    whole = [shape for shape in shapes_of(family) if chips % math.prod(shape) == 0]
    shape = max(whole, key=math.prod)
    return Topology(family, shape, chips // math.prod(shape))


def line(point: Point) -> str:
    """Return the row of a point in the table."""
    memory = analytic_memory(point.config, point.mesh)
    seconds, available = point.seconds, point.topology.chip.memory_bytes
    fits = "" if memory.total < available else " (does not fit)"
    bound = max(seconds, key=seconds.get)
    slices = f"{point.topology.slices} x " if point.topology.slices > 1 else ""
    held = (memory.arguments + memory.gradients) / 1e9
    return (
        f"| {point.topology.chips:,} | {slices}{point.topology.text} | {point.tensor} | "
        f"{point.config.num_microbatches} | {held:.2f} | {memory.saved / 1e9:.2f} | "
        f"{memory.total / 1e9:.1f}{fits} | {seconds['matrix']:.2f} | {seconds['ICI']:.2f} | "
        f"{seconds['DCN']:.2f} | {bound} |"
    )


def compiled_line(row: Row) -> str:
    """Return a row of docs/guide/plan.md: compiled peak, TFLOP and GB next to the analytic ones."""
    point = Point(row.topology, 1, row.config)
    peak, flops, sent = row.cells[0], row.cells[4], row.cells[5]
    received = "-" if sent == "-" else f"{sum(map(float, sent.split(','))):.1f}"
    return (
        f"{row.start} {point.topology.chips} | {peak} | "
        f"{analytic_memory(point.config, point.mesh).total / 1e9:.2f} | {flops.split()[0]} | "
        f"{point.flops / 1e12:.1f} | {received} | {point.links / 1e9:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chip", default="v5p", choices=list(FAMILIES))
    family = parser.parse_args().chip
    large = load_config(CONFIG).model
    small = load_config(CONFIG.replace("70b", "8b")).model
    for name, model in (("8B", small), ("70B", large), ("405B", model_405b(large))):
        print(f"\n{name}, {parameters(model) / 1e9:.2f} billion parameters\n")
        for point in points(model, family):
            print(line(point))
    print("\ncompiled, analytic: peak GB; TFLOP; GB received; per device and step\n")
    for row in table():
        if row.cells[0].replace(".", "").isdigit():
            print(compiled_line(row))


if __name__ == "__main__":
    main()
