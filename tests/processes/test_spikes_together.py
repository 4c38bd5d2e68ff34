"""Several processes take the same decision about a spike as one process."""

import json
from pathlib import Path
from typing import Any

import pytest

from llama_cpt.config.monitors import SpikeConfig
from tests.processes.launched import run_to_end
from tests.runs import learnt

NAN_IN_STEP_5 = """
from dataclasses import replace
from llama_cpt.training.run import Run
real = Run.batches
def batches(self, first_row):
    for number, batch in enumerate(real(self, first_row)):
        bad = first_row + 8 * number == 32
        yield replace(batch, loss_mask=batch.loss_mask * float("nan")) if bad else batch
Run.batches = batches
"""


def spike_of(output: Path) -> dict[str, Any]:
    """Return the description of the run's only spike."""
    (record,) = json.loads((output / "spikes.json").read_text())
    return record


@pytest.mark.slow
def test_processes_roll_back_together(many, tmp_path):
    spikes = SpikeConfig("rollback", rollback_steps=1)
    one, two = (tmp_path / name / "run" for name in ("one", "two"))
    for processes, output in ((1, one), (2, two)):
        run_to_end(many(output, spikes=spikes), processes, NAN_IN_STEP_5)
    lines = learnt(two)
    for line, other in zip(lines, learnt(one), strict=True):
        assert line == pytest.approx(other, abs=1e-5, rel=1e-5)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    ours, theirs = spike_of(two), spike_of(one)
    assert (ours["step"], ours["first_row"], ours["loss"]) == (5, 32, None)
    places = [[(row["file"], row["row"], row["text"]) for row in r["rows"]] for r in (ours, theirs)]
    assert places[0] == places[1]
