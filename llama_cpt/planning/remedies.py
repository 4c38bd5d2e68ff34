"""What to change first where a step does not fit."""

from collections.abc import Mapping
import math

from llama_cpt.config.schema import TrainConfig
from llama_cpt.hardware.topologies import Topology
from llama_cpt.planning.analytic import analytic_memory
from llama_cpt.planning.memory import Memory
from llama_cpt.planning.search import smallest_topology

HELD = "parameters, moments and gradients"


def first_remedy(
    config: TrainConfig,
    topology: Topology,
    mesh: Mapping[str, int],
    memory: Memory | None = None,
) -> str:
    """The first change to try, as an option of the command line where it is one.

    ``memory`` is None where the compiler refused the step.
    """
    microbatch = config.microbatch_rows
    if memory and memory.fits_but_for_evaluation and config.evaluation.batch_size > microbatch:
        return f"--evaluation.batch-size {microbatch}: as many rows as a step has at a time"
    available, alone = topology.chip.memory_bytes, analytic_memory(config, mesh).alone
    if alone > available:
        copies = mesh.get("replica", 1) // topology.slices
        if copies > 1 and alone / copies <= available:
            return (
                f"--mesh.replica {topology.slices} --mesh.fsdp {mesh['fsdp'] * copies}: one copy "
                f"of the parameters on a slice, not {copies}"
            )
        larger = smallest_topology(config, topology)
        told = f": {larger} at least" if larger else " than one slice has"
        return (
            f"more chips{told}; {'weights as they are read' if config.lora else HELD} alone take "
            f"{alone / 1e9:.1f} GB of {available / 1e9:.1f}"
        )
    if config.compute.remat not in ("full", "offload"):
        return "--compute.remat full: the backward pass recomputes all but the layers' inputs"
    parts = math.prod(size for axis, size in mesh.items() if axis not in ("tensor", "context"))
    rows = microbatch // parts
    fewer = [
        count
        for count in range(1, rows // 2 + 1)
        if rows % count == 0 and count * parts >= config.min_microbatch_rows
    ]
    if fewer:
        return f"--microbatch-size {fewer[-1] * parts}: {fewer[-1]} rows a device at a time"
    return "--search: another mesh (mesh.tensor) or compute.remat=offload; else more chips"
