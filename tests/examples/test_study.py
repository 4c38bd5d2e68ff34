"""Tests of the study: its configs agree, and a small study finishes and resumes."""

from pathlib import Path

import pytest

from examples import study
from examples.shown_command import command_line
from llama_cpt.config.loading import load_config
from llama_cpt.config.sweep import SweepConfig


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(Path(study.__file__).parents[1])


def test_pairs_share_a_base_and_differ_only_in_the_language():
    base, cpt = load_config(study.BASE), load_config(study.CPT)
    chinese, arabic = (load_config(config, (), SweepConfig) for config in study.SWEEPS)
    assert chinese.train.init_from == arabic.train.init_from == base.output
    assert arabic.train == cpt
    assert chinese.axes == arabic.axes
    for sweep, code in ((chinese, "zh"), (arabic, "ar")):
        assert sweep.pair == f"en+{code}"
        assert sweep.groups() == {code: "additional", "en": "original"}


SMALL = """
from dataclasses import replace
from configs.demo.study import {name} as config
from llama_cpt.config.schema import CorpusConfig, EvaluationConfig
from llama_cpt.config.sweep import SweepConfig

def moved_path(path):
    return path.replace("runs/world_study", {folder!r})

def small(run):
    def moved(corpora):
        return tuple(replace(corpus, source=moved_path(corpus.source)) for corpus in corpora)

    data = replace(
        run.data,
        tokenizer=moved_path(run.data.tokenizer),
        prepared=moved_path(run.data.prepared),
        additional=moved(run.data.additional),
        original=moved(run.data.original),
        heldout=moved(run.data.heldout),
    )
    return replace(
        run,
        output=moved_path(run.output),
        init_from=moved_path(run.init_from),
        model=replace(run.model, embed_dim=16, mlp_dim=32, num_layers=1, head_dim=4),
        data=data,
        num_steps=4,
        optimizer=replace(run.optimizer, warmup_steps=1),
        global_batch_size=8,
        evaluation=EvaluationConfig(every_steps=2, documents=4, batch_size=8),
    )

if isinstance(config, SweepConfig):
    config = replace(config, output=moved_path(config.output), train=small(config.train))
else:
    config = small(config)
"""


@pytest.mark.slow
def test_study_runs_to_the_law_and_resumes(monkeypatch, tmp_path, capfd):
    folder = str(tmp_path / "runs")
    paths = []
    for config in (study.BASE, study.CPT, *study.SWEEPS):
        name = config.rpartition(":")[2]
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(SMALL.format(name=name, folder=folder))
    base, cpt, *sweeps = map(str, paths)
    for name, value in (("BASE", base), ("CPT", cpt), ("SWEEPS", sweeps), ("DOCUMENTS", 800)):
        monkeypatch.setattr(study, name, value)
    monkeypatch.setenv("XLA_FLAGS", "")  # One device, as for users, is also faster to compile for.
    assert study.main([]) == 0
    output = capfd.readouterr().out
    assert output.count(f"$ {command_line('sweep')}") == 2
    assert "en+ar" in output and "Where to look next" in output
    law = Path(folder) / "law"
    assert (law / "law.json").exists() and (law / "report.md").exists()
    before = (Path(folder) / "base" / "metrics.jsonl").read_bytes()
    assert study.main([]) == 0
    assert (Path(folder) / "base" / "metrics.jsonl").read_bytes() == before
