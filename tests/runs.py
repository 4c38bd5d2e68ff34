"""Runs in this process, and what they left behind."""

import json
import os
from pathlib import Path
from typing import Any

import jax

from llama_cpt.config.schema import TrainConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training import trainer
from llama_cpt.training.run import Run, build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit


def run_of(config: TrainConfig) -> Run:
    """The parts of a run on one device."""
    return build_run(config, make_mesh(config.mesh, jax.devices()[:1]))


def train(config: TrainConfig, **options: Any) -> Outcome:
    """Train to the end."""
    return fit(run_of(config), **options)


def train_until(config: TrainConfig, steps: int, monkeypatch: Any, number: int) -> Outcome:
    """Train, and send this process a signal when step ``steps`` is under way."""
    real = trainer.learning_rate

    def with_signal(optimizer, step: int, num_steps: int) -> float:
        if step == steps - 1:
            os.kill(os.getpid(), number)
        return real(optimizer, step, num_steps)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "learning_rate", with_signal)
        return train(config)


def learnt(output: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines
    ]
