"""A LoRA run: it holds and saves adapters alone, resumes to the last bit, and is a model after."""

from dataclasses import replace
import json
from pathlib import Path
import shutil
import signal

import jax
import numpy as np
import pytest

from llama_cpt.config import CheckpointConfig, LoraConfig, TrainConfig
from llama_cpt.errors import UserError
from llama_cpt.model.load import check_source, load_parameters
from llama_cpt.model.lora import with_adapters
from llama_cpt.training.checkpoint import open_run
from llama_cpt.training.run import lower_step
from llama_cpt.training.trainer import Outcome, restored
from tests.training.runs import learnt
from tests.training.test_trainer import run_of, saved_steps, train, train_until

LORA = LoraConfig(rank=2, alpha=4.0, targets=("query", "down"))


@pytest.fixture(scope="module")
def base(make_config, tmp_path_factory) -> Path:
    """A run of two steps to start from."""
    output = tmp_path_factory.mktemp("base") / "run"
    train(make_config(output, num_steps=2))
    return output


@pytest.fixture(scope="module")
def lora_config(make_config, base):
    def make(output: Path, **fields) -> TrainConfig:
        return make_config(output, **({"lora": LORA, "init_from": str(base)} | fields))

    return make


@pytest.fixture(scope="module")
def whole(lora_config, tmp_path_factory) -> Path:
    """The folder of an uninterrupted LoRA run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert train(lora_config(output)) is Outcome.FINISHED
    return output


def test_starts_where_the_base_ended_and_learns(base, whole):
    before, lines = learnt(base)[-1], learnt(whole)
    for key in before:
        if key.startswith("eval/"):
            assert lines[0][key] == before[key], key
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("steps", [1, 5])
def test_goes_on_to_the_last_bit(steps, whole, lora_config, tmp_path, monkeypatch):
    config = lora_config(tmp_path / "run")
    assert train_until(config, steps, monkeypatch, signal.SIGTERM) is Outcome.PREEMPTED
    assert saved_steps(tmp_path / "run")[-1] == steps
    assert train(config) is Outcome.FINISHED
    assert learnt(tmp_path / "run") == learnt(whole)
