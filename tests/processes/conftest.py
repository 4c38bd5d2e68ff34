"""Fixtures for runs of several processes, in this process or with four shared devices."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_cpt.config.schema import CheckpointConfig, EvaluationConfig, MeshConfig, TrainConfig
from tests.processes.in_process import run_processes
from tests.processes.launched import DEVICES

__all__ = ["run_processes"]


@pytest.fixture(scope="session")
def many(make_config) -> Callable[..., TrainConfig]:
    """A function ``many(output, **fields)`` that returns a config of 6 steps with 3 checkpoints."""

    def make(output: Path, **fields) -> TrainConfig:
        settings = {
            "num_steps": 6,
            "global_batch_size": 8,
            "microbatch_size": 4,
            "mesh": MeshConfig(1, DEVICES, 1),
            "checkpoint": CheckpointConfig(every_steps=2),
            "evaluation": EvaluationConfig(
                every_steps=6, documents=2, batch_size=4, early_evaluations=False
            ),
        }
        return make_config(output, **settings | fields)

    return make
