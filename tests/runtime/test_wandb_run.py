"""Metrics are also sent to Weights & Biases, and its failures do not stop a run."""

import importlib.util
import logging
from pathlib import Path
import signal
import sys

import pytest

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.wandb_run import ID_FILE, WandbRun, check_wandb
from llama_cpt.training.stop import Outcome
from tests.runs import learnt, train, train_until

KEY = "0123456789abcdef" * 2 + "deadbeef"
FAKE = """
import os
from types import SimpleNamespace as Values

def fail(action):
    if os.environ["FAILS"] == action:
        raise ConnectionError(f"{action}: no answer for key " + os.environ["WANDB_API_KEY"])

class Run:
    url = "https://wandb.example/p"
    def __init__(self): self.lines, self.exit_codes = [], []
    def define_metric(self, *names, **options): pass
    def log(self, values):
        fail("log")
        self.lines.append(values)
    def finish(self, exit_code):
        fail("finish")
        self.exit_codes.append(exit_code)

run = Run()
Settings = Values

def setup(): return Values(settings=Values(mode="online"))
def login(prompt, verify):
    fail("login")
    return os.environ["FAILS"] != "key"
def init(**options):
    fail("init")
    run.options = options
    return run
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A module ``wandb`` that fails in the action that the variable FAILS names."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "fake")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("FAILS", "")
    import wandb  # pyright: ignore[reportMissingImports]

    yield wandb
    sys.modules.pop("wandb", None)


@pytest.mark.parametrize("folder", [False, True])
def test_missing_package_is_one_error(folder, tmp_path, monkeypatch):
    """A folder with the name of the package is not the package."""
    if folder:
        (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert (importlib.util.find_spec("wandb") is not None) == folder
    with pytest.raises(UserError, match="wandb_project=p: .* not installed; run `pip install wan"):
        check_wandb("p")
    check_wandb("")


def test_missing_key_is_one_error(fake, monkeypatch):
    check_wandb("p")
    monkeypatch.setenv("FAILS", "key")
    with pytest.raises(UserError, match="no key .*; run `wandb login`, set WANDB_API_KEY, set WAN"):
        check_wandb("p")


def test_run_keeps_its_id_and_gets_config_and_values(fake, tmp_path):
    for attempt in (1, 2):
        with WandbRun("p", str(tmp_path), {"seed": 3}) as run:
            run.write(attempt, {"train/loss": 0.5})
        assert fake.run.options["id"] == (tmp_path / ID_FILE).read_text()
        assert fake.run.options["resume"] == "allow"
    assert (fake.run.options["project"], fake.run.options["config"]) == ("p", {"seed": 3})
    assert fake.run.lines == [{"step": n, "train/loss": 0.5} for n in (1, 2)]
    with pytest.raises(ValueError, match="stop"), WandbRun("p", str(tmp_path), {}):
        raise ValueError("stop")
    assert fake.run.exit_codes == [0, 0, 1]


@pytest.mark.parametrize("action", ["login", "init", "log", "finish"])
def test_failure_is_one_warning_without_the_key(action, fake, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("FAILS", action)
    check_wandb("p")
    with WandbRun("p", str(tmp_path), {}) as run:
        run.write(1, {"train/loss": 0.5})
        run.write(2, {"train/loss": 0.25})
    (line,) = caplog.messages
    assert f"ConnectionError: {action}: no answer for key ***); training continues" in line


def test_offline_runs_of_a_resumed_run_have_one_id(
    make_config, tmp_path, monkeypatch, capfd, caplog
):
    pytest.importorskip("wandb", reason="needs pip install wandb (extra wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    caplog.set_level(logging.INFO)
    config = make_config(tmp_path / "run", wandb_project="tests")
    assert train_until(config, 4, monkeypatch, signal.SIGTERM) is Outcome.PREEMPTED
    assert train(config) is Outcome.FINISHED
    name = (tmp_path / "run" / ID_FILE).read_text()
    first, second = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    content = [one.joinpath(f"run-{name}.wandb").read_bytes() for one in (first, second)]
    for line in learnt(tmp_path / "run"):
        if loss := line.get("train/loss"):
            # The first attempt did 4 of the 8 steps.
            assert repr(loss).encode() in content[line["step"] > 4]
    assert b"tests" in content[0] and b"peak_learning_rate" in content[0]
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err + caplog.text
    assert not [file for file in files_in(tmp_path / "run") if KEY.encode() in file.read_bytes()]


def files_in(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]
