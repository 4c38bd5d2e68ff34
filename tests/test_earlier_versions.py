"""Tests that files of version 0.1 still load and that renamed fields raise helpful errors."""

from dataclasses import replace
import json
from pathlib import Path
import re
from typing import Any

from etils import epath
import numpy as np
import pytest

from llama_cpt.config.fields import from_dict, to_dict
from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.config.sweep import AxisConfig, SweepConfig
from llama_cpt.data.rows import read_manifest
from llama_cpt.evaluation.exact_match import read_questions
from llama_cpt.mixture_law.law_file import load_law
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import read_lines
from llama_cpt.sweeps.trials import make_chains
from llama_cpt.training.resume import check_resume
from tests.conftest import ROOT

LAW = ROOT / "docs" / "notes" / "study" / "law.json"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def test_saved_config_of_a_run_is_read():
    config = load_config("configs/llama3/dpo_8b.py")
    assert config.data.chat is not None
    chat = replace(config.data.chat, loss_on="last")
    config = replace(
        config,
        data=replace(config.data, chat=chat),
        evaluation=replace(config.evaluation, early_evaluations=False),
        objective=replace(config.objective, chosen_logp_drop_warning=3.0),
    )
    saved = to_dict(config)
    saved["data"]["chat"]["learn"] = saved["data"]["chat"].pop("loss_on")
    saved["evaluation"]["dense"] = saved["evaluation"].pop("early_evaluations")
    saved["objective"]["chosen_fall_bound"] = saved["objective"].pop("chosen_logp_drop_warning")
    assert from_dict(TrainConfig, saved) == config


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        ("evaluation=replace(config.evaluation, dense=False)", "dense", "early_evaluations"),
        (
            "objective=replace(config.objective, chosen_fall_bound=1)",
            "chosen_fall_bound",
            "chosen_logp_drop_warning",
        ),
        (
            "data=replace(config.data, chat=replace(config.data.chat, learn='all'))",
            "learn",
            "loss_on",
        ),
    ],
)
def test_earlier_name_in_a_python_config_is_an_error_with_the_new_one(section, old, new, tmp_path):
    path = tmp_path / "old.py"
    path.write_text(
        "from dataclasses import replace\nfrom configs.llama3.dpo_8b import config\n"
        f"config = replace(config, {section})\n"
    )
    with pytest.raises(UserError, match=f"field '{old}' is now named '{new}'"):
        load_config(str(path))


def test_earlier_option_is_an_error_with_the_new_one():
    with pytest.raises(UserError, match="is now named --evaluation.early-evaluations"):
        load_config("configs/llama3/cpt_8b.py", ["--evaluation.dense", "False"])


def test_earlier_module_in_a_config_is_an_error_with_the_new_one(tmp_path):
    path = tmp_path / "old.py"
    path.write_text("from llama_cpt.sweep_config import AxisConfig\n")
    with pytest.raises(UserError, match="import their classes from llama_cpt.config"):
        load_config(str(path))


def test_earlier_names_in_a_sweep_and_in_allow_change_are_errors_with_the_new_one():
    sweep = load_config("configs/llama3/sweep_8b.py", (), SweepConfig)
    axis = AxisConfig("evaluation.dense", (True, False))
    with pytest.raises(UserError, match="axis evaluation.dense is now named evaluation.early_eva"):
        make_chains(replace(sweep, axes=(axis,)))
    with pytest.raises(UserError, match="--allow-change evaluation.dense is now named"):
        check_resume(to_dict(sweep.train), sweep.train, ["evaluation.dense"])


def test_recommended_config_is_an_error_with_a_remedy(tmp_path):
    path = tmp_path / "recommended.py"
    path.write_text("from llama_cpt.config_file import load\n")
    with pytest.raises(UserError, match="run fit_law again, or import load_config"):
        load_config(str(path))


def test_metrics_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    old = {
        "step": 1,
        "mixture/almr_asked": 0.3,
        "mixture/almr_realised": 0.29,
        "mixture/zh/passes": 1.5,
    }
    path.write_text(json.dumps(old) + "\n")
    new = {
        "step": 1,
        "mixture/almr_target": 0.3,
        "mixture/almr_realized": 0.29,
        "mixture/zh/epochs": 1.5,
    }
    assert read_lines(epath.Path(path)) == [new]


def test_manifest_of_chat_rows_is_read(tmp_path):
    chat = {
        "kind": "conversations",
        "template": "llama3",
        "learn": "last",
        "too_long": "drop",
        "mask_format_tokens": False,
    }
    manifest = {
        "corpus": "zh",
        "tokenizer": "t",
        "sequence_length": 8,
        "text_field": "text",
        "bad_documents": "error",
        "sources": [],
        "shards": [["a", 1]],
        "documents": 1,
        "tokens": 8,
        "dropped_tokens": 0,
        "source_bytes": 8,
        "characters": 8,
        "skipped": {},
        "checked_documents": 1,
        "lossy_documents": 0,
        "dataset": "",
        "digest": "d",
        "chat": chat,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    found = read_manifest(str(tmp_path))
    assert found is not None and found.chat is not None
    assert found.chat["loss_on"] == "last" and "learn" not in found.chat


def test_questions_are_read(tmp_path):
    path = tmp_path / "questions.jsonl"
    line = {"language": "en", "question": "?", "answers": ["yes"], "closing": "."}
    path.write_text(json.dumps(line) + "\n")
    assert read_questions(str(path))[0].optional_suffix == "."


def test_law_predicts_as_it_did(tmp_path):
    names = {
        "objective": "goal",
        "runs": "points",
        "extrapolation": "carry",
        "optimal_rate": "ridge",
    }
    old = json.loads(LAW.read_text())
    new = {{v: k for k, v in names.items()}.get(name, name): part for name, part in old.items()}
    surface = dict(new["surface"])
    if "frame" in surface:
        surface["normalization"] = surface.pop("frame")
    normalization = surface["normalization"]
    surface["normalization"] = {
        name.replace("home_", "reference_"): part for name, part in normalization.items()
    }
    new["surface"] = surface
    path = Path(tmp_path / "law.json")
    path.write_text(json.dumps(new))
    assert set(names.values()) & set(old), "this file has the names of version 0.1"
    theirs, ours = (load_law(str(one)).predict(0.4, 3e-3) for one in (LAW, path))
    for group in ("additional", "original"):
        np.testing.assert_array_equal(theirs[group].value, ours[group].value)


# All config files that version 0.1 had in configs/, without the suffix, and their present paths.
MOVED_CONFIGS = {
    "cpt_1b": "llama3/cpt_1b.py",
    "cpt_70b": "llama3/cpt_70b.py",
    "cpt_8b": "llama3/cpt_8b.py",
    "cpt_8b_long": "llama3/cpt_8b_long.py",
    "demo_base": "demo/base.py",
    "demo_cpt": "demo/cpt.py",
    "demo_dpo": "demo/dpo.py",
    "demo_pipeline": "demo/pipeline.py",
    "demo_sft": "demo/sft.py",
    "dpo_70b": "llama3/dpo_70b.py",
    "dpo_8b": "llama3/dpo_8b.py",
    "models": "llama3/models.py",
    "real_text": "real_text/base.py",
    "real_text_cpt": "real_text/cpt.py",
    "real_text_dpo": "real_text/dpo.py",
    "real_text_pipeline": "real_text/pipeline.py",
    "real_text_sft": "real_text/sft.py",
    "sft_70b": "llama3/sft_70b.py",
    "sft_8b": "llama3/sft_8b.py",
    "study": "study/base_models.py",
    "study_large": "study/base_models.py:large",
    "study_large_noise_sweep": "study/sweeps.py:large_noise",
    "study_large_sweep": "study/sweeps.py:large",
    "study_middle": "study/base_models.py:middle",
    "study_middle_sweep": "study/sweeps.py:middle",
    "study_noise_sweep": "study/sweeps.py:noise",
    "study_small": "study/base_models.py:small",
    "study_small_sweep": "study/sweeps.py:small",
    "sweep_8b": "llama3/sweep_8b.py",
    "sweep_order_8b": "llama3/sweep_8b.py:order",
    "sweep_rates_8b": "llama3/sweep_8b.py:rates",
    "sweep_ratios_8b": "llama3/sweep_8b.py:ratios",
    "sweep_spanish_8b": "llama3/sweep_8b.py:spanish",
    "world_study": "demo/study.py",
    "world_study_ar": "demo/study.py:sweep_ar",
    "world_study_base": "demo/study.py:base",
    "world_study_cpt": "demo/study.py:cpt_ar",
    "world_study_zh": "demo/study.py:sweep_zh",
}


@pytest.mark.parametrize(("former", "current"), MOVED_CONFIGS.items())
def test_moved_config_is_an_error_that_names_the_new_path(former, current, tmp_path):
    file, _, variable = current.partition(":")
    module = f"configs.{file.removesuffix('.py').replace('/', '.')}"
    assert (ROOT / "configs" / file).is_file()
    with pytest.raises(UserError, match=re.escape(f"see configs/{current}.") + "$"):
        load_config(f"configs/{former}.py")
    path = tmp_path / "mine.py"
    path.write_text(f"from configs.{former} import config\n", "utf-8")
    now = f"the variable {variable} of {module}" if variable else f"named {module}"
    with pytest.raises(UserError, match=re.escape(f"configs.{former} is now {now}.") + "$"):
        load_config(str(path))


@pytest.mark.parametrize("current", [path for path in MOVED_CONFIGS.values() if ":" in path])
def test_new_path_of_a_moved_config_can_be_loaded(current):
    name = current.partition(":")[2]
    trains = "base_models" in current or name in ("base", "cpt_ar")
    kind: Any = TrainConfig if trains else SweepConfig
    assert load_config(f"configs/{current}", kind=kind).output


def test_moved_file_of_several_configs_keeps_the_requested_variable():
    with pytest.raises(UserError, match=r"see configs/study/base_models\.py:small\.$"):
        load_config("configs/study.py:small")


def test_notes_list_every_moved_config():
    listed = (ROOT / "docs" / "notes" / "renames.csv").read_text("utf-8").splitlines()
    rows = [f"file,configs/{old}.py,configs/{new}" for old, new in MOVED_CONFIGS.items()]
    assert [row for row in rows if row not in listed] == []
