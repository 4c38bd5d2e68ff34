"""Configs that leave ``model`` out, and the architecture that a command reads for them."""

from dataclasses import replace
import json
import logging

import pytest

from llama_cpt import plan, prepare
from llama_cpt.config.loading import load_config, save_config
from llama_cpt.config.model import ModelConfig
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import TrainConfig
from llama_cpt.config.sweep import AxisConfig, SizeConfig, SweepConfig
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.initial_model import with_model
from tests.weights.hf_models import LLAMA3_ROPE, save_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A Hugging Face folder with a Llama 3.1 RoPE scaling and a rounded ``rms_norm_eps``."""
    path = tmp_path_factory.mktemp("llama")
    save_llama(path, rope_parameters=LLAMA3_ROPE, vocab_size=512)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 9.999999747378752e-06}))
    return str(path)


@pytest.fixture
def without_model(make_config, tmp_path, folder) -> TrainConfig:
    """A run that starts from ``folder`` and leaves ``model`` out."""
    return make_config(tmp_path / "run", init_from=folder, model=None)


def test_model_is_read_logged_and_saved(without_model, folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "llama_cpt"):
        config = with_model(without_model)
    model = ModelConfig.from_hf(folder)
    assert config.model == model and model.rope_scaling is not None
    # The logged text is Python code for a config file.
    assert f"model of {folder}: {model}" in caplog.messages
    save_config(config, tmp_path / "config.json")
    assert load_config(str(tmp_path / "config.json")) == config
    # A config with a model reads nothing.
    assert with_model(replace(config, init_from="missing")).model == model


def test_stages_of_a_pipeline_have_the_model_of_the_stage_before(without_model, tmp_path):
    later = replace(without_model, output=str(tmp_path / "sft"), init_from="")
    pipeline = with_model(PipelineConfig(str(tmp_path / "pipeline"), (without_model, later)))
    first, second = (stage.architecture for stage in pipeline.stages)
    assert first == second == with_model(without_model).model


def test_each_size_of_a_sweep_has_the_model_of_its_weights(without_model, folder, tmp_path):
    wide = save_llama(tmp_path / "wide", intermediate_size=96, vocab_size=512)
    sweep = SweepConfig(
        output=str(tmp_path / "sweep"),
        train=replace(without_model, init_from=""),
        pair="en+zh",
        axes=(AxisConfig("seed", (1, 2)),),
        sizes=(SizeConfig("base", init_from=folder), SizeConfig("wide", init_from=wide)),
    )
    assert [size.model and size.model.mlp_dim for size in with_model(sweep).sizes] == [80, 96]
    alone = with_model(replace(sweep, train=without_model, sizes=()))
    assert alone.train.model == ModelConfig.from_hf(folder)
    with pytest.raises(UserError, match="^sizes: none: model is not set; set it, or set init_from"):
        with_model(replace(sweep, sizes=(SizeConfig("none"),)))


@pytest.mark.parametrize(
    ("init_from", "message"),
    [
        ("", "^config: model is not set; set it, or set init_from"),
        ("missing/folder/x", "^missing/folder/x: no such folder"),
    ],
)
def test_missing_weights_are_an_error(without_model, init_from, message):
    with pytest.raises(UserError, match=message):
        with_model(replace(without_model, init_from=init_from))


def test_rows_longer_than_the_context_of_the_weights_are_an_error(without_model):
    long = replace(without_model, data=replace(without_model.data, sequence_length=512))
    with pytest.raises(UserError, match=r"sequence_length=512 must be at most .*=256"):
        with_model(long)


def test_commands_accept_a_config_without_a_model(without_model, tmp_path, capsys, monkeypatch):
    path = tmp_path / "config.json"
    save_config(without_model, path)
    prepare.main([str(path), "--workers", "1"])
    assert "zh" in capsys.readouterr().out
    planned = []

    def stop(config: TrainConfig, *_) -> None:
        planned.append(config.model)
        raise UserError("stop")

    monkeypatch.setattr(plan, "topology_program", stop)
    with pytest.raises(UserError, match="stop"):
        plan.main([str(path), "--topology", "v5e-8"])
    assert planned == [with_model(without_model).model]
