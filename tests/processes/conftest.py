"""Fixtures for runs of several processes on four devices."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_cpt.config.schema import CheckpointConfig, EvaluationConfig, MeshConfig, TrainConfig
from tests.processes.launched import DEVICES


@pytest.fixture(scope="session")
def many(make_config) -> Callable[..., TrainConfig]:
    """A function ``many(output, **fields)`` for a run of 6 steps that saves every second step."""

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
