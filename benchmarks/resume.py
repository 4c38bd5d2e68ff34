"""Time to the first step after a resume, by the number of steps before the resume.

    JAX_PLATFORMS=cpu python -m benchmarks.resume [--steps 10 100000] [--repeats 3]

The command uses the demo's model and text. For each value of ``--steps``, it writes a run folder
with a checkpoint that records this number of steps as done. It then resumes each run in turn, and
measures the time from the start of the process to the log line of the next step. The time should
not depend on the number of steps.
"""

import argparse
from dataclasses import replace
from pathlib import Path
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax

from configs.demo.base import config as base
from examples.bilingual_world.documents import write_world
from examples.bilingual_world.vocabulary import train_vocabulary
from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import CheckpointConfig, CorpusConfig, OptimizerConfig, TrainConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training.attempt import checkpoint_metadata
from llama_cpt.training.run import build_run


def make_config(folder: Path) -> TrainConfig:
    """Write the demo's text and vocabulary, and return a config that uses them."""
    world = folder / "world"
    write_world(world, 0)
    texts = {language: world / f"{language}.train.jsonl" for language in ("en", "zh")}
    vocabulary = folder / "tokenizer.model"
    train_vocabulary(list(texts.values()), vocabulary, base.architecture.vocab_size)
    data = replace(
        base.data,
        tokenizer=str(vocabulary),
        prepared=str(folder / "prepared"),
        almr=0.33,
        additional=(CorpusConfig("zh", str(texts["zh"])),),
        original=(CorpusConfig("en", str(texts["en"])),),
        heldout=(),
        max_epochs=1_000_000,
    )
    return replace(
        base,
        data=data,
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, schedule="constant"),
        num_steps=1,
        checkpoint=CheckpointConfig(every_steps=1_000_000),
        log_every_steps=1,
    )


def save_after(config: TrainConfig, steps: int, folder: Path) -> Path:
    """Write a run with a checkpoint at step ``steps``, and return the path of its config file.

    The config trains one more step.
    """
    config = replace(config, output=str(folder / str(steps)), num_steps=steps + 1)
    mesh = make_mesh(config.mesh)
    run = build_run(config, mesh)
    with (
        jax.set_mesh(mesh),
        CheckpointManager(str(Path(config.output) / CHECKPOINTS_FOLDER)) as checkpoints,
    ):
        state = run.start()
        checkpoints.save(steps, state, checkpoint_metadata(run, state, steps))
    path = folder / f"{steps}.json"
    save_config(config, path)
    return path


def seconds_to_step(config: Path, steps: int) -> float:
    """Resume a copy of the run, and return the seconds until the log line of step ``steps`` + 1.

    The time is measured from the start of the process.
    """
    output = config.with_suffix("")
    copy = output.with_name(f"{output.name}.copy")
    shutil.copytree(output, copy)
    command = [sys.executable, "-m", "llama_cpt.train", str(config), "--output", str(copy)]
    logged = re.compile(rf"\bstep +{steps + 1}/{steps + 1}\b")
    seconds = None
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if logged.search(line):
                seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    if process.returncode or seconds is None:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100_000])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_config(folder)
        paths = {steps: save_after(config, steps, folder) for steps in options.steps}
        seconds = {steps: [] for steps in options.steps}
        for _ in range(options.repeats):
            for steps, path in paths.items():
                seconds[steps].append(seconds_to_step(path, steps))
    for steps, times in seconds.items():
        every = ", ".join(f"{one:.1f}" for one in times)
        print(f"after step {steps:>7,}: {statistics.median(times):.1f} s  (all: {every})")


if __name__ == "__main__":
    main()
