"""Tests of the traits of config fields: compiled step, resume and paths."""

import dataclasses
from dataclasses import replace
import os
from pathlib import Path

import pytest

from llama_cpt.config.fields import (
    compiled_values,
    flat_fields,
    map_paths,
    option,
    traits_by_name,
)
from llama_cpt.config.loading import load_config
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import (
    ChatConfig,
    ComputeConfig,
    CorpusConfig,
    LoraConfig,
    NextTokenConfig,
    PreferenceConfig,
    TrainConfig,
)
from llama_cpt.config.sweep import LEARNING_RATE_FIELD, AxisConfig, SizeConfig, SweepConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIG = load_config(str(ROOT / "configs/llama3/cpt_8b.py"))


def with_optimizer(**changes) -> TrainConfig:
    return replace(CONFIG, optimizer=replace(CONFIG.optimizer, **changes))


def with_data(**changes) -> TrainConfig:
    return replace(CONFIG, data=replace(CONFIG.data, **changes))


def names_with(**traits) -> set[str]:
    return {
        name
        for name, found in traits_by_name(TrainConfig).items()
        if all(getattr(found, trait) == value for trait, value in traits.items())
    }


def test_rules_on_resume():
    assert names_with(on_resume="warn") == {
        *(f"mesh.{axis}" for axis in ("replica", "fsdp", "tensor", "context")),
        "log_every_steps",
        "wandb_project",
        *(f"evaluation.{n}" for n in ("every_steps", "early_evaluations")),
        *(f"evaluation.{n}" for n in ("documents", "batch_size")),
        "checkpoint.every_steps",
        "checkpoint.keep",
        *(f"compute.{n}" for n in ("attention", "remat", "loss_chunk_tokens")),
        "data.max_epochs",
        "objective.chosen_logp_drop_warning",
        *(f"spikes.{n}" for n in ("action", "loss_threshold", "grad_norm_threshold", "window")),
        *(f"spikes.{n}" for n in ("rollback_steps", "max_actions")),
        *(f"forgetting.{n}" for n in ("action", "limit", "corpora")),
    }
    assert names_with(on_resume="never") == {
        *(f"model.{n}" for n in ("vocab_size", "embed_dim", "mlp_dim", "num_layers")),
        *(f"model.{n}" for n in ("num_heads", "num_kv_heads", "head_dim", "tied_embeddings")),
        "init_from",
        "lora.rank",
        "lora.targets",
    }
    assert names_with(on_resume="ignore") == {
        "output",
        "data.tokenizer",
        "data.prepared",
        *(
            f"data.{group}.{name}"
            for group in ("additional", "original", "heldout")
            for name in ("source", "kind")
        ),
    }


def test_an_added_field_separates_compiled_steps_and_is_fixed_on_resume():
    @dataclasses.dataclass(frozen=True)
    class WithQueryNorm(ComputeConfig):
        query_norm: bool = False

    plain = replace(CONFIG, compute=WithQueryNorm())
    normed = replace(CONFIG, compute=WithQueryNorm(query_norm=True))
    assert compiled_values(plain) != compiled_values(normed)
    assert traits_by_name(WithQueryNorm)["query_norm"].on_resume == "fixed"


SAME_STEP = [
    with_optimizer(peak_learning_rate=1e-6),
    with_optimizer(schedule="wsd", decay_steps=7, warmup_steps=3, initial_learning_rate=1e-9),
    with_optimizer(final_learning_rate_fraction=0.5),
    with_data(almr=0.11),
    with_data(almr=((0, 0.1), (9, 1.0))),
    with_data(prepared="elsewhere", tokenizer="other", bad_documents="skip", max_epochs=9.0),
    with_data(heldout=()),
    with_data(original=tuple(replace(c, name=f"{c.name}2") for c in CONFIG.data.original)),
    replace(CONFIG, seed=5),
    replace(CONFIG, num_steps=CONFIG.num_steps + 1),
    replace(CONFIG, output="elsewhere", init_from="elsewhere", log_every_steps=3),
    replace(CONFIG, checkpoint=replace(CONFIG.checkpoint, keep=9)),
    replace(CONFIG, evaluation=replace(CONFIG.evaluation, documents=9)),
]
OTHER_STEP = [
    with_optimizer(beta2=0.5),
    with_optimizer(weight_decay=0.0),
    with_data(sequence_length=CONFIG.data.sequence_length // 2),
    with_data(original=(*CONFIG.data.original, CorpusConfig("code", "code.jsonl"))),
    with_data(chat=ChatConfig()),
    replace(CONFIG, global_batch_size=2 * CONFIG.global_batch_size),
    replace(CONFIG, microbatch_size=CONFIG.global_batch_size // 2),
    replace(CONFIG, model=replace(CONFIG.architecture, norm_eps=1e-6)),
    replace(CONFIG, compute=replace(CONFIG.compute, remat="none")),
    replace(CONFIG, mesh=replace(CONFIG.mesh, tensor=2)),
    replace(CONFIG, objective=NextTokenConfig(z_loss=1e-4)),
    replace(CONFIG, lora=LoraConfig(8, 16.0), init_from="base"),
    replace(CONFIG, evaluation=replace(CONFIG.evaluation, batch_size=16)),
]


@pytest.mark.parametrize("changed", SAME_STEP)
def test_runs_of_a_sweep_share_a_compiled_step(changed):
    assert changed != CONFIG
    assert compiled_values(changed) == compiled_values(CONFIG)
    assert hash(compiled_values(changed)) == hash(compiled_values(CONFIG))


@pytest.mark.parametrize("changed", OTHER_STEP)
def test_what_changes_the_step_separates_compiled_steps(changed):
    assert compiled_values(changed) != compiled_values(CONFIG)


def test_the_seed_separates_compiled_steps_only_if_the_step_draws_noise():
    noisy = replace(CONFIG, objective=NextTokenConfig(neftune_alpha=5.0))
    assert compiled_values(noisy) != compiled_values(replace(noisy, seed=noisy.seed + 1))


def test_objectives_of_two_classes_are_two_steps():
    chat = with_data(chat=ChatConfig())
    keys = {
        compiled_values(replace(chat, objective=objective))
        for objective in (NextTokenConfig(), PreferenceConfig("kto"), PreferenceConfig("ipo"))
    }
    assert len(keys) == 3


@pytest.mark.parametrize("kind", [TrainConfig, PipelineConfig, SweepConfig])
def test_every_path_field_is_expanded(kind):
    """``~`` is a path of each field that is marked, and of no other string."""
    train = replace(
        CONFIG,
        output="~/out",
        init_from="~/base",
        data=replace(CONFIG.data, tokenizer="~/t", prepared="~/rows"),
    )
    config = {
        TrainConfig: train,
        PipelineConfig: PipelineConfig("~/p", (train,), ("~",), "~/q", benchmarks="~/b"),
        SweepConfig: SweepConfig(
            "~/s",
            train,
            "en+zh",
            axes=(AxisConfig(LEARNING_RATE_FIELD, (1.0, 2.0)),),
            sizes=(SizeConfig("small", CONFIG.architecture, "~/small"),),
            law="~/l",
        ),
    }[kind]
    expanded = []

    def expand(path: str) -> str:
        expanded.append(path)
        return path

    map_paths(config, expand)
    of_train = ["~/base", "~/out", "~/rows", "~/t"]
    own = {
        TrainConfig: [],
        PipelineConfig: ["~/b", "~/p", "~/q"],
        SweepConfig: ["~/l", "~/s", "~/small"],
    }[kind]
    assert sorted(expanded) == sorted(of_train + own)
    paths = {name for name, traits in traits_by_name(kind).items() if traits.is_path}
    assert len(paths) == len(expanded)


def test_a_path_field_without_a_list_entry_is_expanded(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Section:
        folder: str = option("~/a", is_path=True)
        name: str = "~/a"

    monkeypatch.setenv("HOME", "/home/me")
    assert map_paths(Section(), os.path.expanduser) == Section("/home/me/a", "~/a")


def test_flat_fields_have_the_names_of_options():
    values = {"data": {"almr": [[0, 0.5], [9, 1.0]], "original": [{"name": "en"}, {"name": "es"}]}}
    assert flat_fields(values) == {
        "data.almr": [[0, 0.5], [9, 1.0]],
        "data.original.0.name": "en",
        "data.original.1.name": "es",
    }
