"""Tests of the demo: its configs match its text, and a small demo finishes and resumes."""

import dataclasses
from functools import partial
import json
import os
from pathlib import Path
import shutil

import pytest

from examples import demo
from examples.bilingual_world.documents import write_world
from examples.shown_command import command_line
from llama_cpt.config.loading import load_config
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.runtime.errors import UserError

ROOT = Path(demo.__file__).parents[1]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_runs_differ_only_in_the_ratio():
    base, with_replay = load_config(demo.BASE), load_config(demo.CPT)
    assert with_replay.init_from == base.output
    assert with_replay.model == base.model
    assert base.data.almr_stages() == ((0, 0),)
    without = load_config(demo.CPT, ["--data.almr", "1.0", "--output", "elsewhere"])
    assert [float(run.data.almr_stages()[0][1]) for run in (with_replay, without)] == [0.33, 1]
    same = dataclasses.replace(
        without, output=with_replay.output, data=dataclasses.replace(without.data, almr=0.33)
    )
    assert same == with_replay
    pipeline = load_config(demo.PIPELINE, (), PipelineConfig)
    assert pipeline.stages[0] == with_replay and len(pipeline.linked_stages()) == 3


def test_missing_configs_are_named_outside_the_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="configs/demo/base.py: no such config file"):
        demo.main([])


SMALL = """
from dataclasses import replace
from {original} import config
from llama_cpt.config.schema import CorpusConfig, EvaluationConfig

def moved_path(path):
    return path.replace("runs/demo", {folder!r})

def small(run):
    def moved(corpora):
        return tuple(replace(corpus, source=moved_path(corpus.source)) for corpus in corpora)

    return replace(
        run,
        output=moved_path(run.output),
        init_from=moved_path(run.init_from),
        model=replace(run.model, embed_dim=16, mlp_dim=32, num_layers=1, head_dim=4),
        data=replace(
            run.data,
            tokenizer=moved_path(run.data.tokenizer),
            prepared=moved_path(run.data.prepared),
            additional=moved(run.data.additional),
            original=moved(run.data.original),
            heldout=moved(run.data.heldout),
        ),
        num_steps=4,
        optimizer=replace(run.optimizer, warmup_steps=1),
        global_batch_size=8,
        evaluation=EvaluationConfig(every_steps=2, documents=4, batch_size=8),
    )

"""
ONE = "config = small(config)"
ALL = """
config = replace(
    config,
    output=moved_path(config.output),
    stages=tuple(map(small, config.stages)),
    questions=moved_path(config.questions),
    benchmarks=moved_path(config.benchmarks),
    task_examples=8,
)
"""


@pytest.mark.slow
def test_demo_runs_to_the_report_and_resumes(monkeypatch, tmp_path, capfd):
    folder = str(tmp_path / "runs")
    for name, ending in (("BASE", ONE), ("CPT", ONE), ("PIPELINE", ALL)):
        path = tmp_path / f"{name.lower()}.py"
        module = ".".join(Path(getattr(demo, name)).with_suffix("").parts)
        path.write_text(SMALL.format(original=module, folder=folder) + ending)
        monkeypatch.setattr(demo, name, str(path))
    small_world = partial(write_world, documents=900, heldout=40, chat_repeats=2)
    monkeypatch.setattr(demo, "write_world", small_world)
    monkeypatch.setenv("XLA_FLAGS", "")  # One device, as for users, is also faster to compile for.
    assert demo.main([]) == 0
    output = capfd.readouterr().out
    assert output.count(f"$ {command_line('train')}") == 2
    assert output.count(f"$ {command_line('pipeline')}") == 1
    assert output.count(f"$ {command_line('evaluate')}") == 1
    assert "after, ALMR 0.33" in output and "Where to look next" in output
    assert command_line("chat", f"{folder}/pipeline/exported", "--temperature", "0") in output
    made = Path(folder)
    exported = made / "pipeline" / "exported" / "config.json"
    assert json.loads(exported.read_text())["model_type"] == "llama"
    report = (made / "pipeline" / "report.md").read_text()
    assert "0 of 248" in report and "world_feelings_zh (chance 25)" in report
    compared = (made / "scores" / "report.md").read_text()
    assert "world_facts_en (chance 25)" in compared and "| task | base | almr_0.33 |" in compared
    assert (made / "forgetting.png").stat().st_size > 10_000

    shutil.rmtree(made / "dpo")
    (made / "forgetting.png").unlink()
    before = os.stat(made / "world" / "en.train.jsonl").st_mtime
    assert demo.main([]) == 0
    assert os.stat(made / "world" / "en.train.jsonl").st_mtime == before
    log = capfd.readouterr().err
    assert "pipeline: dpo" in log and "pipeline: sft" not in log
    assert (made / "forgetting.png").exists()
