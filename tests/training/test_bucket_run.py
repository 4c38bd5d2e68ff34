"""A run in a bucket is restarted after a kill and survives errors of the storage."""

import asyncio
from dataclasses import replace
import itertools
import logging
from types import SimpleNamespace
from typing import Any

import gcsfs.retry
import pytest

from llama_cpt.config.schema import CheckpointConfig
from llama_cpt.training import attempt
from tests.runs import learnt, train
from tests.storage_server import bucket

__all__ = ["bucket"]

STEPS = 6


class Killed(BaseException):
    """Ends a run in the middle of a step, without a save."""


@pytest.fixture
def short_waits(monkeypatch):
    """Shorten the waits of gcsfs between its tries; those of TensorStore remain."""
    sleep = SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 100))
    monkeypatch.setattr(gcsfs.retry, "asyncio", sleep)


@pytest.mark.slow
@pytest.mark.usefixtures("short_waits")
def test_run_in_a_bucket_survives_kill_and_storage_errors(
    make_config, bucket, tmp_path, monkeypatch, caplog
):
    """After the restart every tenth response of the storage has status 503."""
    caplog.set_level(logging.INFO, "llama_cpt")
    fields = {"num_steps": STEPS, "checkpoint": CheckpointConfig(every_steps=2, keep=1)}
    config = make_config("gs://bucket/run", **fields)
    train(replace(config, output=str(tmp_path / "whole")))
    learning_rate = attempt.learning_rate

    def killed(optimizer: Any, step: int, num_steps: int, version: int) -> float:
        if step == 3:
            raise Killed
        return learning_rate(optimizer, step, num_steps, version)

    def committed(step: int) -> bool:
        return f"run/checkpoints/{step}.manifest-00000-of-00001.json" in bucket.objects

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(attempt, "learning_rate", killed)
        train(config)
    assert committed(2) and not committed(4)

    requests = itertools.count(1)
    bucket.fails = lambda method: next(requests) % 10 == 0
    train(config)
    assert next(requests) > 400
    assert "resuming after step 2" in caplog.text
    assert committed(STEPS) and not committed(STEPS - 2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(bucket.objects["run/metrics.jsonl"])
    assert learnt(tmp_path / "run") == learnt(tmp_path / "whole")
