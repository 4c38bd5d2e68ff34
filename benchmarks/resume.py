"""Time to the first step after a resume, by the number of steps done; it should not depend on it.

    JAX_PLATFORMS=cpu python -m benchmarks.resume [--steps 10 100000] [--repeats 3]

The model is the demo's, on the demo's text. The command writes a run folder per number of steps,
whose checkpoint records that many steps as done, many epochs of the text included. It then measures
``llama_cpt.train`` on each in turn, from the start of the process to the line of the next step.
"""

import argparse
from dataclasses import replace
from pathlib import Path
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax

from configs.demo_base import config as base
from examples.bilingual_world.documents import write_world
from examples.bilingual_world.vocabulary import train_vocabulary
from llama_cpt.checkpoint.checkpoint import CHECKPOINTS_FOLDER, CheckpointManager
from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import CheckpointConfig, CorpusConfig, OptimizerConfig, TrainConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training.run import build_run
from llama_cpt.training.trainer import checkpoint_metadata


def make_config(folder: Path) -> TrainConfig:
    """Write the demo's text and vocabulary, and return a config that trains on them."""
    world = folder / "world"
    write_world(world, 0)
    texts = {language: world / f"{language}.train.jsonl" for language in ("en", "zh")}
    vocabulary = folder / "tokenizer.model"
    train_vocabulary(list(texts.values()), vocabulary, base.model.vocab_size)
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
    """Write a run of which ``steps`` are done; return the config file, with one more step."""
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
    """Return the seconds from the command's start to the line of the step after ``steps``.

    The command resumes a copy of the run.
    """
    output = config.with_suffix("")
    copy = output.with_name(f"{output.name}.copy")
    shutil.copytree(output, copy)
    command = [sys.executable, "-m", "llama_cpt.train", str(config), "--output", str(copy)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.split()[:1] == ["step"] and line.split()[1] == f"{steps + 1}/{steps + 1}":
                seconds = time.perf_counter() - start
    shutil.rmtree(copy)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
