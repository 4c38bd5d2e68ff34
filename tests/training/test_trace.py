"""A trace of the steps that were asked for, with the parts of a step by name."""

import gzip
import os
from pathlib import Path
import subprocess
import sys

import pytest

from llama_cpt.config.loading import save_config
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import read_lines
from llama_cpt.training.trace import Trace, steps_to_trace
from tests.conftest import ROOT


@pytest.mark.parametrize("steps", ["3", "5:4", "0:2", "a:b"])
def test_steps_that_are_none(steps):
    with pytest.raises(UserError, match="--profile"):
        steps_to_trace(steps)


@pytest.mark.parametrize(
    ("after", "num_steps", "none"), [(9, 100, ""), (20, 100, "21 to 100"), (0, 5, "1 to 5")]
)
def test_a_trace_that_never_begins_is_said(after, num_steps, none, capsys):
    Trace(steps_to_trace("10:13"), "nowhere").warn_if_unreachable(after, num_steps)
    told = capsys.readouterr().err
    assert (f"--profile 10:13: no trace: this start does steps {none}" in told) == bool(none)


def traced(config: Path) -> subprocess.CompletedProcess:
    """Steps 2 and 3, by a process of its own: the profiler crashes after a TPU's compiler."""
    return subprocess.run(
        [sys.executable, "-m", "llama_cpt.train", str(config), "--profile", "2:3"],
        cwd=ROOT,
        # One device, as the config has it.
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_trace_for_xprof_and_perfetto(make_config, tmp_path):
    config = make_config(tmp_path / "run", num_steps=4)
    save_config(config, tmp_path / "config.json")
    done = traced(tmp_path / "config.json")
    assert done.returncode == 0, done.stderr
    (perfetto,) = Path(config.output).rglob("perfetto_trace.json.gz")
    (xprof,) = Path(config.output).rglob("*.xplane.pb")
    told = gzip.decompress(perfetto.read_bytes()).decode()
    assert '"step_num": "3"' in told.replace('":"', '": "') and xprof.stat().st_size
    assert f"trace of steps 2 to 3: {config.output}/profile" in done.stdout
    # To write it takes longer than to train these steps, and is not training.
    *_, last = read_lines(Path(config.output, "metrics.jsonl"))
    assert last["perf/seconds/trace"] > last["perf/seconds/step"]


@pytest.mark.slow
def test_a_trace_that_cannot_be_written_ends_no_run(make_config, tmp_path):
    config = make_config(tmp_path / "run", num_steps=4)
    save_config(config, tmp_path / "config.json")
    os.makedirs(config.output)
    Path(config.output, "profile").write_text("not a folder")
    done = traced(tmp_path / "config.json")
    assert done.returncode == 0 and "step      4/4" in done.stdout
    assert f"warning: {config.output}/profile: no trace: " in done.stderr
