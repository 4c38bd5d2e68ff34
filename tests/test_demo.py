"""The demo: its configs are what it says, and with small ones it runs through and runs again."""

import dataclasses
import json
import os
from pathlib import Path
import shutil

import pytest

from llama_cpt import demo
from llama_cpt.config_file import load
from llama_cpt.errors import UserError

ROOT = Path(demo.__file__).parents[1]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_runs_differ_in_the_ratio_alone():
    base, with_replay = load(demo.BASE), load(demo.CPT)
    assert with_replay.init_from == base.output
    assert with_replay.model == base.model
    assert base.data.stages() == ((0, 0),)
    without = load(demo.CPT, ["--data.almr", "1.0", "--output", "elsewhere"])
    assert [float(run.data.stages()[0][1]) for run in (with_replay, without)] == [0.33, 1]
    same = dataclasses.replace(
        without, output=with_replay.output, data=dataclasses.replace(without.data, almr=0.33)
    )
    assert same == with_replay


def test_outside_the_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="configs/demo_base.py: no such config file"):
        demo.main([])


SMALL = """
from dataclasses import replace
from {original} import config
from llama_cpt.config import CorpusConfig, EvaluationConfig

def moved(corpora):
    return tuple(replace(c, source=c.source.replace("runs/demo", {folder!r})) for c in corpora)

config = replace(
    config,
    output=config.output.replace("runs/demo", {folder!r}),
    init_from=config.init_from.replace("runs/demo", {folder!r}),
    model=replace(config.model, embed_dim=16, mlp_dim=32, num_layers=1, head_dim=4),
    data=replace(
        config.data,
        tokenizer={folder!r} + "/tokenizer.model",
        prepared={folder!r} + "/prepared",
        additional=moved(config.data.additional),
        original=moved(config.data.original),
        heldout=moved(config.data.heldout),
    ),
    num_steps=4,
    optimizer=replace(config.optimizer, warmup_steps=1),
    global_batch_size=8,
    evaluation=EvaluationConfig(every_steps=2, documents=4, batch_size=8),
)
"""


@pytest.mark.slow
def test_from_text_to_figure_and_again(monkeypatch, tmp_path, capfd):
    folder = str(tmp_path / "runs")
    for name in ("BASE", "CPT"):
        path = tmp_path / f"{name.lower()}.py"
        module = Path(getattr(demo, name)).stem
        path.write_text(SMALL.format(original=f"configs.{module}", folder=folder))
        monkeypatch.setattr(demo, name, str(path))
    assert demo.main([]) == 0
    told = capfd.readouterr().out
    assert told.count("$ python -m llama_cpt.train") == 3
    assert "after, ALMR 0.33" in told and "Where to look next" in told
    made = Path(folder)
    assert json.loads((made / "exported" / "config.json").read_text())["model_type"] == "llama"
    assert (made / "forgetting.png").stat().st_size > 10_000

    shutil.rmtree(made / "almr_1.0")
    (made / "forgetting.png").unlink()
    before = os.stat(made / "world" / "en.train.jsonl").st_mtime
    assert demo.main([]) == 0
    assert os.stat(made / "world" / "en.train.jsonl").st_mtime == before
    assert "after step 4" in capfd.readouterr().out
    assert (made / "forgetting.png").exists()
