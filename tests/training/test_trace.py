"""A trace of the steps that were asked for, with the parts of a step by name."""

import gzip
from pathlib import Path

import jax
import pytest

from llama_cpt.errors import UserError
from llama_cpt.sharding import make_mesh
from llama_cpt.training.run import build
from llama_cpt.training.trace import Trace
from llama_cpt.training.trainer import fit


@pytest.mark.parametrize("steps", ["3", "5:4", "0:2", "a:b"])
def test_steps_that_are_none(steps):
    with pytest.raises(UserError, match="--profile"):
        Trace(steps, "nowhere")


@pytest.mark.slow
def test_a_trace_for_xprof_and_perfetto(make_config, tmp_path, capsys):
    config = make_config(tmp_path / "run", num_steps=4)
    fit(build(config, make_mesh(config.mesh, jax.devices()[:1])), profile="2:3")
    (perfetto,) = Path(config.output).rglob("perfetto_trace.json.gz")
    (xprof,) = Path(config.output).rglob("*.xplane.pb")
    told = gzip.decompress(perfetto.read_bytes()).decode()
    assert '"step_num": "3"' in told.replace('":"', '": "') and xprof.stat().st_size
    assert f"trace of steps 2 to 3: {config.output}/profile" in capsys.readouterr().out
