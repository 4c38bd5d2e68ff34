"""A run that is killed at random moments, also while saving, gives the same metrics.

Each kill follows a random number of trained steps. The run saves every second step, so some kills
interrupt a save.
"""

from dataclasses import replace
import os
from pathlib import Path
import random
import re
import subprocess
import sys
import time

import pytest

from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import TrainConfig
from tests.runs import learnt

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("LLAMA_CPT_KILLS", "1"))


def start(config: TrainConfig) -> subprocess.Popen[bytes]:
    """Start ``python -m llama_cpt.train`` with ``config`` as a separate process."""
    folder = Path(config.output).parent
    path = folder / "config.json"
    save_config(config, path)
    environment = {**os.environ, "XLA_FLAGS": ""}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "llama_cpt.train", str(path)],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )


def finish(config: TrainConfig) -> None:
    """Train until all steps are done, in a separate process."""
    assert start(config).wait() == 0, (Path(config.output).parent / "log").read_text()


def lines_of(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for_progress(process: subprocess.Popen[bytes], metrics: Path, new_lines: int) -> None:
    """Wait until the run has truncated its metrics and written ``new_lines`` more."""
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    least = None
    while process.poll() is None:
        if metrics.exists() and metrics.stat().st_mtime_ns != before:
            least = min(lines_of(metrics), lines_of(metrics) if least is None else least)
            if lines_of(metrics) >= least + new_lines:
                return
        time.sleep(0.002)


@pytest.mark.slow
def test_run_killed_at_random_moments_is_bit_exact(make_config, tmp_path):
    base = make_config(tmp_path)
    fields = {
        "num_steps": 20 * KILLS,
        "data": replace(base.data, max_epochs=1000.0),
        "checkpoint": replace(base.checkpoint, every_steps=2),
        "evaluation": replace(base.evaluation, every_steps=100),
    }
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = make_config(tmp_path / "whole" / "run", **fields)
    finish(whole)
    killed = make_config(tmp_path / "killed" / "run", **fields)
    output, draw = Path(killed.output), random.Random(0)
    for _ in range(KILLS):
        process = start(killed)
        # Each attempt trains at most 18 of 20 steps, so the run cannot end before the last kill.
        wait_for_progress(process, output / "metrics.jsonl", draw.randint(0, 17))
        time.sleep(draw.uniform(0.0, 0.02))
        assert process.poll() is None, (output.parent / "log").read_text()
        process.kill()
        process.wait()
    finish(killed)
    resumed = set(re.findall(r"after step (\d+)", (output.parent / "log").read_text()))
    assert len(resumed) > KILLS // 2, resumed
    assert learnt(output) == learnt(Path(whole.output))
