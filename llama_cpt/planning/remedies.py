"""What to change first where a step does not fit."""

from collections.abc import Mapping
import math

from llama_cpt.config import TrainConfig
from llama_cpt.planning.hand_sum import hand_sum
from llama_cpt.planning.search import smallest_topology
from llama_cpt.planning.topologies import Topology


def first_remedy(config: TrainConfig, topology: Topology, mesh: Mapping[str, int]) -> str:
    """The first change to try, as an option of the command line where it is one."""
    available = topology.chip.memory_bytes
    least = hand_sum(config, mesh)
    if least.arguments + least.gradients > available:
        larger = smallest_topology(config, topology)
        told = f": {larger.text} ({larger.name}) at least" if larger else " than one slice has"
        return (
            f"more chips{told}; parameters, moments and gradients alone take "
            f"{(least.arguments + least.gradients) / 1e9:.1f} GB of {available / 1e9:.1f}"
        )
    if config.compute.remat not in ("full", "offload"):
        return "--compute.remat full: the backward pass recomputes all but the layers' inputs"
    parts = math.prod(size for axis, size in mesh.items() if axis not in ("tensor", "context"))
    rows = config.global_batch_size // config.num_microbatches // parts
    if rows > 1:
        return f"--microbatch-size {rows // 2 * parts}: {rows // 2} rows a device at a time"
    return "--search: another mesh (mesh.tensor) or compute.remat=offload; else more chips"
