"""A trace contains the requested steps, and a failed trace does not end the run."""

import gzip
import os
from pathlib import Path
import subprocess
import sys

from etils import epath
import pytest

from llama_cpt.config.loading import save_config
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import read_lines
from llama_cpt.training.trace import Trace, steps_to_trace
from tests.conftest import ROOT


@pytest.mark.parametrize("steps", ["3", "5:4", "0:2", "a:b"])
def test_malformed_steps_are_rejected(steps):
    with pytest.raises(UserError, match="--profile"):
        steps_to_trace(steps)


@pytest.mark.parametrize(
    ("after", "num_steps", "none"), [(9, 100, ""), (20, 100, "21 to 100"), (0, 5, "1 to 5")]
)
def test_unreachable_trace_is_a_warning(after, num_steps, none, caplog):
    Trace(steps_to_trace("10:13"), "nowhere").warn_if_unreachable(after, num_steps)
    message = f"--profile 10:13: no trace: this attempt runs steps {none}"
    assert (message in caplog.text) == bool(none)


def traced(config: Path) -> subprocess.CompletedProcess[str]:
    """Trace steps 2 and 3 in a separate process, because the profiler crashes after libtpu ran."""
    return subprocess.run(
        [sys.executable, "-m", "llama_cpt.train", str(config), "--profile", "2:3"],
        cwd=ROOT,
        # The config is for one device.
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_trace_is_written_for_xprof_and_perfetto(make_config, tmp_path):
    config = make_config(tmp_path / "run", num_steps=4)
    save_config(config, tmp_path / "config.json")
    done = traced(tmp_path / "config.json")
    assert done.returncode == 0, done.stderr
    (perfetto,) = Path(config.output).rglob("perfetto_trace.json.gz")
    (xprof,) = Path(config.output).rglob("*.xplane.pb")
    text = gzip.decompress(perfetto.read_bytes()).decode()
    assert '"step_num": "3"' in text.replace('":"', '": "') and xprof.stat().st_size
    assert f"trace of steps 2 to 3: {config.output}/profile" in done.stderr
    # Writing the trace takes longer than these steps and does not count as training.
    *_, last = read_lines(epath.Path(config.output, "metrics.jsonl"))
    assert last["perf/seconds/trace"] > last["perf/seconds/step"]


@pytest.mark.slow
def test_trace_that_cannot_be_written_is_a_warning(make_config, tmp_path):
    config = make_config(tmp_path / "run", num_steps=4)
    save_config(config, tmp_path / "config.json")
    os.makedirs(config.output)
    Path(config.output, "profile").write_text("not a folder")
    done = traced(tmp_path / "config.json")
    assert done.returncode == 0 and " INFO step      4/4" in done.stderr
    assert f" WARNING {config.output}/profile: no trace: " in done.stderr
