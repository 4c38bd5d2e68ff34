"""The end of a run shows what changed, and its commands run as printed."""

from dataclasses import replace
import io
import os
from pathlib import Path
import shlex

import jax
import pytest

from llama_cpt import chat, convert, evaluate, train
from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import MeshConfig, TrainConfig
from llama_cpt.evaluation.scores import read_scores
from llama_cpt.generation import decoder
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.training.ending import heldout_changes, next_commands


def line(step, **bits):
    return {"step": step} | {f"eval/{name}/bits_per_byte": value for name, value in bits.items()}


def test_changes_are_those_from_the_first_to_the_last_evaluation(make_config):
    config = make_config("run")
    lines = [line(0, zh=2.0, en=1.0), {"step": 1, "train/loss": 3.0}]
    lines += [line(4, zh=1.9, en=5.0), line(8, zh=1.5, en=1.01)]
    assert heldout_changes(config, lines).splitlines() == [
        "held-out bits per byte  group       before  after 8 steps  change",
        "zh                      additional  2.0000  1.5000         -25.00%",
        "en                      original    1.0000  1.0100         +1.00%",
    ]
    assert "after 4 steps" in heldout_changes(config, lines[2:])
    assert "set data.heldout" in heldout_changes(config, lines[1:2])


def test_commands_fit_the_run(make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "a b")
    config = make_config("my runs/one/", init_from=str(tmp_path / "base"))
    text = next_commands(config)
    assert f"  cd {tmp_path} && export PYTHONPATH='a b'\n" in text
    evaluation = shlex.split(next(one for one in text.splitlines() if ".evaluate" in one))
    assert evaluation[3:] == [
        *(f"before={tmp_path}/base", "after=my runs/one"),
        *("--tokenizer", config.data.tokenizer, "--tasks", "bpb"),
        *("--heldout-of", "my runs/one/config.json", "--output", "my runs/one-scores"),
    ]
    without = replace(config, output="gs://b/run", data=replace(config.data, heldout=()))
    assert "evaluate" not in next_commands(without)
    assert "--output scores\n" in next_commands(replace(config, output="gs://b/run"))


@pytest.mark.slow
def test_printed_commands_run(make_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    for module in (train, decoder):
        monkeypatch.setattr(module, "make_mesh", lambda _: mesh)
    config: TrainConfig = make_config(Path("run"), num_steps=2)
    save_config(config, Path("config.json"))
    assert train.main(["config.json"]) == 0
    printed = capsys.readouterr().out
    assert "held-out bits per byte" in printed and "after 2 steps" in printed
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    commands = {"evaluate": evaluate.main, "convert": convert.main, "chat": chat.main}
    for shown in map(str.strip, printed.splitlines()):
        if " -m llama_cpt." in shown:
            executable, _, module, *arguments = shlex.split(shown)
            assert os.access(executable, os.X_OK)
            assert commands.pop(module.removeprefix("llama_cpt."))(arguments) == 0
    assert not commands
    assert set(read_scores("run-scores/after")) == {"bpb"}
    assert Path("run-hf/model.safetensors").exists()
