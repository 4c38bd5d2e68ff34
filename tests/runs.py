"""Helpers that train in this process and read the results of a run."""

import json
import os
from pathlib import Path
from typing import Any

import jax

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.schema import TrainConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training import attempt
from llama_cpt.training.run import Run, build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit


def run_of(config: TrainConfig) -> Run:
    """Return the Run of ``config`` on one device, ready for ``fit``."""
    return build_run(config, make_mesh(config.mesh, jax.devices()[:1]))


def train(config: TrainConfig, **options: Any) -> Outcome:
    """Train ``config`` to the end on one device and return the outcome."""
    return fit(run_of(config), **options)


def train_until(config: TrainConfig, steps: int, monkeypatch: Any, number: int) -> Outcome:
    """Train and send signal ``number`` to this process during step ``steps``; return the
    outcome."""
    real = attempt.learning_rate

    def with_signal(optimizer, step: int, num_steps: int, version: int) -> float:
        if step == steps - 1:
            os.kill(os.getpid(), number)
        return real(optimizer, step, num_steps, version)

    with monkeypatch.context() as patch:
        patch.setattr(attempt, "learning_rate", with_signal)
        return train(config)


def saved_steps(output: Path) -> list[int]:
    """Return the steps of the checkpoints in ``output``."""
    with CheckpointManager(str(output / CHECKPOINTS_FOLDER), 3) as checkpoints:
        return checkpoints.steps()


def learnt(output: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl`` without the keys that depend on the clock."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines
    ]
