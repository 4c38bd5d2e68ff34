"""Memory of prefill and decode on TPUs, for the table in docs/notes/performance.md.

    python -m benchmarks.generation_memory [WORD ...]

The command compiles programs in bfloat16 for 16 rows, prompts of 4,096 tokens and a cache of 8,192
tokens per row. If WORDs are given, such as ``70B decode``, only the table rows that contain all of
them are compiled. Layers are unrolled, so a compilation takes minutes. The command needs libtpu but
no TPU.
"""

import argparse
from collections.abc import Callable
from functools import partial
import time

import jax

from configs.llama3.models import LLAMA3_8B, LLAMA3_70B
from llama_cpt.config.schema import MeshConfig
from llama_cpt.generation.lowering import lower_decode, lower_prefill
from llama_cpt.hardware.topologies import find_topology
from llama_cpt.training.lowering import require_compiler

ROWS, LENGTH, COLUMNS = 16, 4096, 8192
SHAPES = (
    ("8B", LLAMA3_8B, "v5e:2x4", MeshConfig(fsdp=1, tensor=8)),
    ("8B", LLAMA3_8B, "v5p:2x2x1", MeshConfig(fsdp=1, tensor=4)),
    ("8B", LLAMA3_8B, "v5p:2x2x4", MeshConfig(fsdp=2, tensor=8)),
    ("70B", LLAMA3_70B, "v5p:4x4x8", MeshConfig(fsdp=16, tensor=8)),
)
CALLS: dict[str, Callable[..., jax.stages.Lowered]] = {
    "decode": partial(lower_decode, rows=ROWS, columns=COLUMNS),
    "prefill": partial(lower_prefill, rows=ROWS, length=LENGTH, columns=COLUMNS),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*")
    words = parser.parse_args().words
    jax.config.update("jax_platforms", "cpu")
    require_compiler()
    for name, model, topology, mesh in SHAPES:
        for call, lower in CALLS.items():
            start = f"| {name}, {call} | {topology}, fsdp {mesh.fsdp}, tensor {mesh.tensor} |"
            if not all(word in start for word in words):
                continue
            began = time.monotonic()
            memory = lower(model, mesh, topology).compile().memory_analysis()
            assert memory is not None
            cells = (
                memory.argument_size_in_bytes,
                memory.temp_size_in_bytes,
                memory.peak_memory_in_bytes,
                find_topology(topology).chip.memory_bytes,
            )
            line = " | ".join(f"{size / 1e9:.1f}" for size in cells)
            print(start, line, f"| ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
