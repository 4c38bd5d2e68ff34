"""What one training step holds on a chip, as the TPU compiler places it, on no TPU.

    PYTHONPATH=. python benchmarks/step_memory.py [cpt_8b@v5e:4x4@1x8192 ...]

Each argument is a config, a topology, and the rows and their length a chip: one micro-batch, the
fsdp axis only. Without arguments, the table of docs/performance.md. Needs libtpu; one process
compiles one step at a time.
"""

from dataclasses import replace
import math
import os
import sys
import time

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
os.environ.update(ENVIRONMENT)

from llama_cpt.config_file import load  # noqa: E402
from llama_cpt.planning.compiling import compiled_and_text  # noqa: E402
from llama_cpt.planning.out_of_memory import TooLarge  # noqa: E402
from llama_cpt.planning.step_plan import read_step  # noqa: E402
from llama_cpt.training.ahead_of_time import lower, topology_program  # noqa: E402

SHAPES = (
    *(f"cpt_8b@v5e:4x4@{rows}" for rows in ("1x8192", "1x4096", "2x8192")),
    "cpt_8b@v5e:4x8@1x8192",
    *(f"cpt_70b@v5p:4x4x8@{rows}" for rows in ("2x8192", "1x8192", "2x4096", "1x4096")),
    *(f"cpt_70b@v6e:16x16@{rows}" for rows in ("1x8192", "1x4096", "2x8192")),
)


def measure(shape: str) -> str:
    """A line of the table."""
    name, topology, per_chip = shape.split("@")
    rows, length = map(int, per_chip.split("x"))
    chips = math.prod(map(int, topology.split(":")[1].split("x")))
    config = load(f"configs/{name}.py")
    config = replace(
        config,
        data=replace(config.data, sequence_length=length),
        global_batch_size=rows * chips,
        microbatch_size=0,
    )
    program = topology_program(config, topology)
    lowered, start = lower(config, program), time.perf_counter()
    made, told = compiled_and_text(lowered), f"| `{name}` | {topology} | {rows} x {length} |"
    seconds = time.perf_counter() - start
    if isinstance(made, TooLarge):
        return f"{told} does not fit: {made.used / 1e9:.2f} | | | | {seconds:.0f} |"
    memory, read = made[0].memory_analysis(), read_step(made[1], dict(program.mesh.shape))
    peak, arguments = memory.peak_memory_in_bytes / 1e9, memory.argument_size_in_bytes / 1e9
    flops, sent = read.matrix.total / 1e12, sum(one.bytes for one in read.collectives) / 1e9
    return f"{told} {peak:.2f} | {arguments:.2f} | {flops:.2f} | {sent:.2f} | {seconds:.0f} |"


if __name__ == "__main__":
    print(
        "| config | topology | rows x length a chip | peak GB | GB of arguments | matrix TFLOPs "
        "| GB received | compile s |"
    )
    for shape in sys.argv[1:] or SHAPES:
        print(measure(shape), flush=True)
