"""Compilation time and peak memory of one training step for TPUs, compared with MaxText.

    python -m benchmarks.compile_time MAXTEXT PYTHON [SHAPE ...] [--repeats 3]

MAXTEXT is a checkout of MaxText. PYTHON is an interpreter with MaxText's requirements and the same
versions of JAX and libtpu as the current interpreter. SHAPE has the format of step_memory.py. Each
run measures only ``Lowered.compile``, in a new process without a compilation cache. The programs
take turns. MaxText is compiled without and with vocabulary tiling, which reduces its memory. The
command needs libtpu but no TPU. Run nothing else on the machine at the same time.
"""

import argparse
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys

from llama_cpt.hardware.topologies import find_topology
from llama_cpt.runtime.progress import Progress
from llama_cpt.training.lowering import COMPILER_SETTINGS

# Name of each config's model in MaxText.
MODELS = {"cpt_8b": "llama3-8b", "cpt_70b": "llama3-70b"}
SHAPES = ("cpt_8b@v5e:4x4@1x8192", "cpt_70b@v5p:4x4x8@1x8192")
TILED = {"llama_cpt": None, "MaxText": False, "MaxText, tiled": True}
TIMED = """
import json, runpy, sys, time
import jax
compile = jax.stages.Lowered.compile
def timed(*arguments, **options):
    wall, processor = time.perf_counter(), time.process_time()
    made = compile(*arguments, **options)
    seconds = [time.perf_counter() - wall, time.process_time() - processor]
    print("TIMED", json.dumps([*seconds, made.memory_analysis().peak_memory_in_bytes / 1e9]))
    return made
jax.stages.Lowered.compile = timed
"""
OURS = "from benchmarks.step_memory import lowered_step; lowered_step(sys.argv[1]).compile()"
THEIRS = "runpy.run_module('maxtext.trainers.pre_train.train_compile', run_name='__main__')"


def command(name: str, shape: str, options: argparse.Namespace) -> tuple[list[str], str]:
    """Return the command line that compiles ``shape``, and the PYTHONPATH of the command."""
    if TILED[name] is None:
        return [sys.executable, "-c", TIMED + OURS, shape], "."
    config, topology, per_chip = shape.split("@")
    rows, length = per_chip.split("x")
    source = Path(options.maxtext, "src")
    settings = {
        "model_name": MODELS[config],
        "compile_topology": find_topology(topology).name,
        "compile_topology_num_slices": 1,
        "per_device_batch_size": rows,
        "max_target_length": length,
        "remat_policy": "full",
        "attention": "flash",
        "scan_layers": True,
        "weight_dtype": "float32",
        "dtype": "bfloat16",
        "opt_type": "adamw",
        "mu_dtype": "float32",
        "ici_fsdp_parallelism": -1,
        "num_vocab_tiling": 4 if TILED[name] else 1,
        "dataset_type": "synthetic",
        "enable_checkpointing": False,
        "jax_cache_dir": "",
        "log_config": False,
        "run_name": "compile_time",
    }
    base = source / "maxtext" / "configs" / "base.yml"
    named = [f"{key}={value}" for key, value in settings.items()]
    return [options.python, "-c", TIMED + THEIRS, str(base), *named], str(source)


def measure(name: str, shape: str, options: argparse.Namespace) -> tuple[float, ...]:
    """Compile once, and return wall seconds, processor seconds and peak memory in GB."""
    arguments, modules = command(name, shape, options)
    environment = {
        **{key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ},
        "PYTHONPATH": modules,
        "JAX_PLATFORMS": "cpu",
        **COMPILER_SETTINGS,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("TIMED ")]
    if done.returncode or len(lines) != 1:
        sys.exit(f"{name} on {shape}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    return tuple(json.loads(lines[0].removeprefix("TIMED ")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("maxtext")
    parser.add_argument("python")
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| shape | | seconds | all runs | processor seconds | peak GB |")
    print("| --- | --- | --- | --- | --- | --- |")
    total = len(options.shapes) * options.repeats * len(TILED)
    with Progress("compile", total, "steps") as progress:
        for shape in options.shapes:
            found = {name: [] for name in TILED}
            for _ in range(options.repeats):
                for name, runs in found.items():
                    runs.append(measure(name, shape, options))
                    progress.update(1)
            for name, runs in found.items():
                wall, processor, peak = zip(*runs, strict=True)
                print(
                    f"| {shape} | {name} | {statistics.median(wall):.1f} | "
                    f"{', '.join(f'{one:.1f}' for one in wall)} | "
                    f"{statistics.median(processor):.1f} | {peak[0]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
