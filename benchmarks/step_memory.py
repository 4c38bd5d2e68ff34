"""Memory of one training step per chip, as the TPU compiler reports it.

    python -m benchmarks.step_memory [cpt_8b@v5e:4x4@1x8192 ...]

An argument has the form CONFIG@TOPOLOGY@ROWSxLENGTH, with the number of rows per chip and their
length in tokens. The step has one micro-batch and uses only the fsdp axis. Without arguments, the
command compiles the steps in the table of docs/notes/performance.md, one at a time. The command
needs libtpu but no TPU.
"""

from dataclasses import replace
import sys
import time

import jax
from jax.sharding import Mesh

from llama_cpt.config.loading import load_config
from llama_cpt.hardware.topologies import find_topology
from llama_cpt.planning.compiling import OutOfMemory, compile_program
from llama_cpt.training.lowering import lower_program, topology_program

SHAPES = (
    *(f"cpt_8b@v5e:4x4@{rows}" for rows in ("1x8192", "1x4096", "2x8192")),
    "cpt_8b@v5e:4x8@1x8192",
    *(f"cpt_70b@v5p:4x4x8@{rows}" for rows in ("2x8192", "1x8192", "2x4096", "1x4096")),
    *(f"cpt_70b@v6e:16x16@{rows}" for rows in ("1x8192", "1x4096", "2x8192")),
)


def lowered_step(shape: str) -> tuple[jax.stages.Lowered, Mesh]:
    """Return the lowered step of ``shape``, such as ``cpt_8b@v5e:4x4@1x8192``, and its mesh."""
    name, topology, per_chip = shape.split("@")
    rows, length = map(int, per_chip.split("x"))
    config = load_config(f"configs/llama3/{name}.py")
    config = replace(
        config,
        data=replace(config.data, sequence_length=length),
        global_batch_size=rows * find_topology(topology).devices,
        microbatch_size=0,
    )
    program = topology_program(config, topology)
    return lower_program(config, program), program.mesh


def measure(shape: str) -> str:
    """Compile the step of ``shape``, and return its row of the table."""
    name, topology, per_chip = shape.split("@")
    (lowered, mesh), start = lowered_step(shape), time.perf_counter()
    made, cells = compile_program(lowered, mesh), f"| `{name}` | {topology} | {per_chip} |"
    seconds = time.perf_counter() - start
    if isinstance(made, OutOfMemory):
        return f"{cells} does not fit: {made.used / 1e9:.2f} | | | | {seconds:.0f} |"
    read, peak, arguments = made.program, made.peak / 1e9, made.arguments / 1e9
    flops, sent = read.matrix.total / 1e12, sum(one.bytes for one in read.collectives) / 1e9
    return f"{cells} {peak:.2f} | {arguments:.2f} | {flops:.2f} | {sent:.2f} | {seconds:.0f} |"


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    print(
        "| config | topology | rows x length per chip | peak GB | GB of arguments | matrix TFLOPs "
        "| GB received | compile s |"
    )
    for shape in sys.argv[1:] or SHAPES:
        print(measure(shape), flush=True)
