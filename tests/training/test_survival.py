"""Killed at random moments, during saving too, a run loses nothing."""

from dataclasses import replace
import os
from pathlib import Path
import random
import subprocess
import sys
import time

import pytest

from llama_cpt.config import TrainConfig, save
from tests.training.runs import learnt

ROOT = Path(__file__).resolve().parents[2]
KILLS = 20


def start(config: TrainConfig, cache: Path) -> subprocess.Popen:
    """``python -m llama_cpt.train`` on this config, as a process of its own."""
    folder = Path(config.output).parent
    path = folder / "config.json"
    save(config, path)
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "llama_cpt.train", str(path)],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )


def finish(config: TrainConfig, cache: Path) -> float:
    """Run to the end; how many seconds it took."""
    begun = time.monotonic()
    assert start(config, cache).wait() == 0, (Path(config.output).parent / "log").read_text()
    return time.monotonic() - begun


def wait_for_start(process: subprocess.Popen, output: Path, seen: float) -> None:
    """Until the process has begun to write its metrics."""
    metrics = output / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.stat().st_mtime > seen:
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_twenty_kills(make_config, tmp_path, compilation_cache):
    base = make_config(tmp_path)
    fields = {
        "num_steps": 400,
        "data": replace(base.data, max_epochs=1000.0),
        "checkpoint": replace(base.checkpoint, every_steps=2),
        "evaluation": replace(base.evaluation, every_steps=100),
    }
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = make_config(tmp_path / "whole" / "run", **fields)
    finish(whole, compilation_cache)
    killed = make_config(tmp_path / "killed" / "run", **fields)
    output, draw, kills = Path(killed.output), random.Random(0), 0
    while kills < KILLS:
        metrics = output / "metrics.jsonl"
        seen = metrics.stat().st_mtime if metrics.exists() else 0.0
        process = start(killed, compilation_cache)
        wait_for_start(process, output, seen)
        time.sleep(draw.uniform(0.0, 1.0))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    finish(killed, compilation_cache)
    assert kills == KILLS, "the run ended before it was killed often enough"
    assert learnt(output) == learnt(Path(whole.output))
