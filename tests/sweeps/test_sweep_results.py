"""Results and leases of trials are the same in a local folder and in a bucket."""

import csv
from dataclasses import replace
import io
import json
import time

from etils import epath
import pytest

from configs.demo.cpt import config as cpt
from llama_cpt.config.sweep import AxisConfig, SizeConfig, SweepConfig
from llama_cpt.model.flops import non_embedding_parameters
from llama_cpt.runtime.errors import UserError
from llama_cpt.sweeps.leases import hold_lease, lease_owner
from llama_cpt.sweeps.results import (
    COLUMNS,
    TrialStatus,
    heldout_losses,
    read_status,
    write_results,
    write_status,
)
from llama_cpt.sweeps.trials import make_chains, tokens_per_step
from tests.special_files import KINDS, make_special_file
from tests.storage_server import bucket

__all__ = ["bucket"]


@pytest.fixture(params=["local", "bucket"])
def sweep(request, tmp_path, bucket):
    """A sweep of two sizes with one trial each."""
    folder = "gs://bucket/sweep" if request.param == "bucket" else str(tmp_path / "sweep")
    large = replace(cpt.architecture, num_layers=6)
    sizes = (SizeConfig("small", cpt.model, "bases/s"), SizeConfig("large", large, "bases/l"))
    return SweepConfig(folder, cpt, "en+zh", (AxisConfig("data.almr", (0.25,)),), sizes=sizes)


def trials_of(sweep):
    return [trial for chain in make_chains(sweep) for trial in chain]


def write_metrics(trial, losses):
    """Write ``metrics.jsonl`` of a trial with (step, loss of zh, loss of en) per evaluation.

    Bits per byte are half of the loss.
    """
    folder = epath.Path(trial.config.output)
    folder.mkdir(parents=True)
    lines = [{"step": 1, "train/loss": 3.0}]
    for step, *both in losses:
        line = {"step": step}
        for corpus, loss in zip(("zh", "en"), both, strict=True):
            line |= {f"eval/{corpus}/loss": loss, f"eval/{corpus}/bits_per_byte": loss / 2}
        lines.append(line)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_results_have_a_row_per_run_evaluation_and_corpus(sweep):
    small, large = trials_of(sweep)
    write_metrics(small, [(0, 8.0, 2.0), (600, 4.0, 3.0)])
    write_metrics(large, [(0, 7.0, 1.0), (60, 6.0, 1.5)])
    write_status(small, TrialStatus("done", tokenizer="abc"))
    assert read_status(large) is None
    assert len(read(write_results(sweep, [small, large]))) == 4
    write_status(large, TrialStatus("diverged", "loss of step 70 is nan", "abc"))
    rows = read(write_results(sweep, [small, large]))
    assert list(rows[0]) == COLUMNS
    shown = ("corpus", "group", "step", "loss", "base_loss")
    values = [(row["run"].split("/")[1][:5], *(row[name] for name in shown)) for row in rows]
    assert values == [
        ("small", "zh", "additional", "0", "8.0", "8.0"),
        ("small", "zh", "additional", "600", "4.0", "8.0"),
        ("small", "en", "original", "0", "2.0", "2.0"),
        ("small", "en", "original", "600", "3.0", "2.0"),
        ("large", "zh", "additional", "0", "7.0", "7.0"),
        ("large", "zh", "additional", "60", "6.0", "7.0"),
        ("large", "zh", "additional", "600", "", "7.0"),
        ("large", "en", "original", "0", "1.0", "1.0"),
        ("large", "en", "original", "60", "1.5", "1.0"),
        ("large", "en", "original", "600", "", "1.0"),
    ]
    last = rows[-1]
    assert last["tokens"] == str(600 * tokens_per_step(cpt))
    assert last["parameters"] == str(non_embedding_parameters(large.config.architecture))
    assert (last["pair"], last["mixture_order"], last["tokenizer"]) == (
        "en+zh",
        "interleaved",
        "abc",
    )


def test_summary_has_the_loss_of_each_corpus(tmp_path):
    """A second additional corpus is not averaged into the group."""
    data = cpt.data
    heldout = (*data.heldout, replace(data.heldout[0], name="ja"))
    train = replace(cpt, data=replace(data, heldout=heldout))
    axes = (AxisConfig("data.almr", (0.25,)),)
    sweep = SweepConfig(str(tmp_path), train, "en+zh", axes, heldout_groups=(("ja", "additional"),))
    (trial,) = trials_of(sweep)
    assert heldout_losses(sweep, trial) == {}
    write_metrics(trial, [(0, 8.0, 2.0), (600, 4.0, 3.0)])
    file = epath.Path(trial.config.output) / "metrics.jsonl"
    file.write_text(file.read_text().replace('"eval/zh/loss"', '"eval/ja/bits_per_byte"'))
    assert list(heldout_losses(sweep, trial).items()) == [
        ("additional zh", 2.0),
        ("additional ja", 4.0),
        ("original", 1.5),
    ]


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"status": "well"}',
        '{"status": "done", "seconds": "9"}',
        '{"status": "done", "seconds": null}',
        '{"status": "done", "color": "red"}',
        '{"status": ["done"]}',
        f'{{"status": "done", "reason": {DEEP}}}',
    ],
)
def test_damaged_status_is_an_error_that_names_the_file(content, sweep):
    trial, _ = trials_of(sweep)
    folder = epath.Path(trial.config.output)
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(content)
    with pytest.raises(UserError, match=r"trial.json: .*; delete it to train the trial again"):
        read_status(trial)


def test_damaged_metrics_of_a_trial_are_left_out(sweep):
    small, _ = trials_of(sweep)
    write_metrics(small, [(0, 8.0, 2.0), (600, 4.0, 3.0)])
    file = epath.Path(small.config.output) / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 600, "eval/zh/loss": "4"}\nx\n{"step": 6')
    write_status(small, TrialStatus("done"))
    assert len(read(write_results(sweep, [small]))) == 4


LARGE = " " * (16 << 20)
LEASES = {
    "empty": "",
    "null": "null",
    "list": "[]",
    "no fields": "{}",
    "time is text": '{"worker": "a", "time": "x"}',
    "no time": '{"worker": "a"}',
    "deep": DEEP,
    "large": '{"worker": "a", "time": NOW}' + LARGE,
}


@pytest.mark.parametrize("lease", LEASES.values(), ids=LEASES.keys())
def test_damaged_lease_is_free(lease, tmp_path):
    file = epath.Path(tmp_path / "lease.json")
    file.write_text(lease.replace("NOW", str(time.time())))
    assert lease_owner(file) == ""
    with hold_lease(file, "worker") as held:
        assert held


@pytest.mark.parametrize("kind", KINDS)
def test_special_file_in_place_of_a_lease_is_free(kind, tmp_path):
    """A FIFO would block the reader."""
    make_special_file(tmp_path / "lease.json", kind)
    assert lease_owner(epath.Path(tmp_path / "lease.json")) == ""


def test_lease_from_a_clock_that_is_ahead_expires(tmp_path):
    file = epath.Path(tmp_path / "lease.json")
    for seconds, owner in ((60, "a"), (1e6, "")):
        file.write_text(json.dumps({"worker": "a", "time": time.time() + seconds}))
        assert lease_owner(file) == owner


def read(file):
    return list(csv.DictReader(io.StringIO(file.read_text())))


def test_lease_is_exclusive_and_released(sweep):
    file = epath.Path(sweep.output) / "claims" / "one.json"
    with hold_lease(file, "worker 1/2") as mine, hold_lease(file, "worker 2/2") as others:
        assert mine and not others
        assert lease_owner(file).startswith("worker 1/2 (")
    assert not lease_owner(file)
