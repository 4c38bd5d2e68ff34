"""The tables of docs/scaling.md: memory and time of a step by arithmetic, 8 to 8,192 chips.

    python -m benchmarks.scaling [--chip v5p]

No compiler runs here: ``planning.hand_sum`` counts what no program can avoid. In each micro-batch
weights are gathered forward and backward, in bfloat16, and gradients scattered, in float32; once a
step they are summed over slices.
"""

import argparse
from dataclasses import dataclass, replace
import math
from pathlib import Path

from llama_cpt.config import ModelConfig, TrainConfig
from llama_cpt.config_file import load
from llama_cpt.metrics import model_flops_per_token
from llama_cpt.planning.hand_sum import hand_sum, parameters
from llama_cpt.planning.topologies import FAMILIES, Topology, shapes_of

CONFIG = str(Path(__file__).resolve().parents[1] / "configs" / "cpt_70b.py")
CHIPS = (8, 32, 128, 512, 2048, 8192)
ROWS = 1024
"""Of a step, 8,192 tokens each: 8.4 million tokens."""


@dataclass(frozen=True)
class Point:
    """One model on so many chips."""

    topology: Topology
    tensor: int
    """Chips that share a row, where there are more chips than rows."""
    config: TrainConfig

    @property
    def mesh(self) -> dict[str, int]:
        slices = self.topology.slices
        fsdp = self.topology.devices // slices // self.tensor
        return {"replica": slices, "fsdp": fsdp, "tensor": self.tensor}

    @property
    def seconds(self) -> dict[str, float]:
        """Of matrix products, links and network, each alone."""
        config, chip, mesh = self.config, self.topology.chip, self.mesh
        model = config.model
        rate = model_flops_per_token(model, config.data.sequence_length)
        flops = ROWS * config.data.sequence_length * rate * 4 / 3 / self.topology.devices
        weights = parameters(model) / self.tensor
        links = config.num_microbatches * (2 * 2 + 4) * weights * (1 - 1 / mesh["fsdp"])
        tokens = ROWS * config.data.sequence_length / (mesh["replica"] * mesh["fsdp"])
        # Forward, forward again and backward: two sums of a layer's output each.
        share = 2 * (self.tensor - 1) / self.tensor
        links += 6 * share * tokens * model.embed_dim * 2 * model.num_layers
        slices = self.topology.slices
        network = 2 * 4 * weights / mesh["fsdp"] * (slices - 1) / slices
        return {
            "matrix": flops / chip.peak_flops,
            "ICI": links / chip.ici_bandwidth,
            "DCN": network / chip.dcn_bandwidth,
        }


def model_405b(base: ModelConfig) -> ModelConfig:
    """Llama-3.1 405B (its ``config.json``)."""
    return replace(base, embed_dim=16384, mlp_dim=53248, num_layers=126, num_heads=128)


def points(model: ModelConfig, family: str) -> list[Point]:
    config = replace(load(CONFIG), model=model, global_batch_size=ROWS)
    found = []
    for chips in CHIPS:
        topology = _topology(family, chips)
        tensor = max(1, math.ceil(topology.devices / ROWS))
        microbatch = topology.devices // tensor
        found.append(Point(topology, tensor, replace(config, microbatch_size=microbatch)))
    return found


def _topology(family: str, chips: int) -> Topology:
    """The fewest slices that have ``chips``."""
    whole = [shape for shape in shapes_of(family) if chips % math.prod(shape) == 0]
    shape = max(whole, key=math.prod)
    return Topology(family, shape, chips // math.prod(shape))


def line(point: Point) -> str:
    memory = hand_sum(point.config, point.mesh)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chip", default="v5p", choices=list(FAMILIES))
    family = parser.parse_args().chip
    large = load(CONFIG).model
    small = load(CONFIG.replace("70b", "8b")).model
    for name, model in (("8B", small), ("70B", large), ("405B", model_405b(large))):
        print(f"\n{name}, {parameters(model) / 1e9:.2f} billion parameters\n")
        for point in points(model, family):
            print(line(point))


if __name__ == "__main__":
    main()
