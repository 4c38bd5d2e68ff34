"""`make study`: its configs fit together, and with small ones it runs through and runs again."""

from pathlib import Path

import pytest

from examples import study
from llama_cpt.config.loading import load_config
from llama_cpt.config.sweep import SweepConfig


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(Path(study.__file__).parents[1])


def test_both_pairs_start_from_one_base_and_differ_in_the_language_alone():
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
from {original} import config
from llama_cpt.config.schema import CorpusConfig, EvaluationConfig
from llama_cpt.config.sweep import SweepConfig

def there(place):
    return place.replace("runs/world_study", {folder!r})

def small(run):
    def moved(corpora):
        return tuple(replace(corpus, source=there(corpus.source)) for corpus in corpora)

    data = replace(
        run.data,
        tokenizer=there(run.data.tokenizer),
        prepared=there(run.data.prepared),
        additional=moved(run.data.additional),
        original=moved(run.data.original),
        heldout=moved(run.data.heldout),
    )
    return replace(
        run,
        output=there(run.output),
        init_from=there(run.init_from),
        model=replace(run.model, embed_dim=16, mlp_dim=32, num_layers=1, head_dim=4),
        data=data,
        num_steps=4,
        optimizer=replace(run.optimizer, warmup_steps=1),
        global_batch_size=8,
        evaluation=EvaluationConfig(every_steps=2, documents=4, batch_size=8),
    )

if isinstance(config, SweepConfig):
    config = replace(config, output=there(config.output), train=small(config.train))
else:
    config = small(config)
"""


@pytest.mark.slow
def test_from_text_to_law_and_again(monkeypatch, tmp_path, capfd):
    folder = str(tmp_path / "runs")
    places = []
    for config in (study.BASE, study.CPT, *study.SWEEPS):
        places.append(tmp_path / Path(config).name)
        places[-1].write_text(SMALL.format(original=f"configs.{Path(config).stem}", folder=folder))
    base, cpt, *sweeps = map(str, places)
    for name, value in (("BASE", base), ("CPT", cpt), ("SWEEPS", sweeps), ("DOCUMENTS", 800)):
        monkeypatch.setattr(study, name, value)
    assert study.main([]) == 0
    told = capfd.readouterr().out
    assert told.count("$ python -m llama_cpt.sweep") == 2
    assert "en+ar" in told and "Where to look next" in told
    law = Path(folder) / "law"
    assert (law / "law.json").exists() and (law / "report.md").exists()
    before = (Path(folder) / "base" / "metrics.jsonl").read_bytes()
    assert study.main([]) == 0
    assert (Path(folder) / "base" / "metrics.jsonl").read_bytes() == before
