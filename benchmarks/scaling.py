"""Analytic memory and time of a step on 8 to 8,192 chips, for the tables of docs/notes/scaling.md.

    python -m benchmarks.scaling [--chip v5p]

The figures are lower bounds from ``planning.analytic``, and nothing is compiled. For each
micro-batch, the step gathers the weights in bfloat16 in the forward and in the backward pass,
reduce-scatters the gradients in float32, and sums the gradients over slices. The last table has the
rows of the table in docs/guide/plan.md. It compares the compiler's figures with the analytic
figures of the same step.
"""

import argparse
from dataclasses import dataclass, replace
import math
from pathlib import Path

from benchmarks.plan_table import Row, table
from llama_cpt.config.loading import load_config
from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.hardware.topologies import FAMILIES, Topology, shapes_of
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.planning.analytic import analytic_memory, parameters

CONFIG = str(Path(__file__).resolve().parents[1] / "configs" / "llama3" / "cpt_70b.py")
CHIPS = (8, 32, 128, 512, 2048, 8192)
ROWS = 1024
"""The number of rows per step. A row has 8,192 tokens, so a step has 8.4 million tokens."""


@dataclass(frozen=True)
class Point:
    """The training step of one model on one topology."""

    topology: Topology
    tensor: int
    """The size of the tensor axis, which is above 1 only if there are more devices than rows."""
    config: TrainConfig

    @property
    def mesh(self) -> dict[str, int]:
        """The sizes of the mesh axes."""
        slices = self.topology.slices
        fsdp = self.topology.devices // slices // self.tensor
        return {"replica": slices, "fsdp": fsdp, "tensor": self.tensor}

    @property
    def tokens(self) -> int:
        """The number of tokens per step."""
        return self.config.global_batch_size * self.config.data.sequence_length

    @property
    def flops(self) -> float:
        """The FLOPs of matrix products per device and step."""
        rate = model_flops_per_token(self.config.architecture, self.config.data.sequence_length)
        return self.tokens * rate * 4 / 3 / self.topology.devices

    @property
    def links(self) -> float:
        """The bytes that a device receives from devices of its slice per step."""
        model, mesh = self.config.architecture, self.mesh
        weights = parameters(model) / self.tensor * (1 - 1 / mesh["fsdp"])
        # The forward, recomputed forward and backward pass each sum two outputs per layer.
        share = 2 * (self.tensor - 1) / self.tensor
        local = self.tokens / (mesh["replica"] * mesh["fsdp"])
        sums = 6 * share * local * model.embed_dim * 2 * model.num_layers
        return self.config.num_microbatches * (2 * 2 + 4) * weights + sums

    @property
    def network(self) -> float:
        """The bytes that a device receives from other slices per step."""
        slices = self.topology.slices
        share = parameters(self.config.architecture) / self.tensor / self.mesh["fsdp"]
        return self.config.num_microbatches * 2 * 4 * share * (slices - 1) / slices

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds per step of matrix products, ICI and DCN, without overlap."""
        chip = self.topology.chip
        return {
            "matrix": self.flops / chip.peak_flops,
            "ICI": self.links / chip.ici_bandwidth,
            "DCN": self.network / chip.dcn_bandwidth,
        }


def model_405b(base: ModelConfig) -> ModelConfig:
    """Return ``base`` with the sizes of Llama-3.1 405B."""
    return replace(base, embed_dim=16384, mlp_dim=53248, num_layers=126, num_heads=128)


def points(model: ModelConfig, family: str) -> list[Point]:
    """Return one step of ``model`` per number of chips in CHIPS."""
    config = replace(load_config(CONFIG), model=model, global_batch_size=ROWS)
    found = []
    for chips in CHIPS:
        topology = _topology(family, chips)
        tensor = max(1, math.ceil(topology.devices / ROWS))
        microbatch = topology.devices // tensor
        found.append(Point(topology, tensor, replace(config, microbatch_size=microbatch)))
    return found


def _topology(family: str, chips: int) -> Topology:
    """Return the topology with ``chips`` chips and the smallest possible number of slices."""
    whole = [shape for shape in shapes_of(family) if chips % math.prod(shape) == 0]
    shape = max(whole, key=math.prod)
    return Topology(family, shape, chips // math.prod(shape))


def line(point: Point) -> str:
    """Return a point's row of the analytic table."""
    memory = analytic_memory(point.config, point.mesh)
    seconds, available = point.seconds, point.topology.chip.memory_bytes
    fits = "" if memory.total < available else " (does not fit)"
    bound = max(seconds, key=lambda name: seconds[name])
    slices = f"{point.topology.slices} x " if point.topology.slices > 1 else ""
    held = (memory.arguments + memory.gradients) / 1e9
    return (
        f"| {point.topology.chips:,} | {slices}{point.topology.text} | {point.tensor} | "
        f"{point.config.num_microbatches} | {held:.2f} | {memory.saved / 1e9:.2f} | "
        f"{memory.total / 1e9:.1f}{fits} | {seconds['matrix']:.2f} | {seconds['ICI']:.2f} | "
        f"{seconds['DCN']:.2f} | {bound} |"
    )


def compiled_line(row: Row) -> str:
    """Return a row of the last table, with the compiled and analytic peak, TFLOPs and GB."""
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
    large = load_config(CONFIG).architecture
    small = load_config(CONFIG.replace("70b", "8b")).architecture
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
