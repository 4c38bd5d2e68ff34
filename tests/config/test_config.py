"""Tests of reading, overriding and writing configs, and of their error messages."""

from dataclasses import replace
from fractions import Fraction
import json
import os
from pathlib import Path
import runpy
import subprocess
import sys

import pytest

from llama_cpt.config.fields import to_dict
from llama_cpt.config.loading import load_config, save_config
from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import ChatConfig, CorpusConfig, PreferenceConfig, TrainConfig
from llama_cpt.runtime.errors import USAGE, UserError

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ["cpt_1b", "cpt_8b", "cpt_70b", "sft_8b", "sft_70b", "dpo_8b", "dpo_70b"]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    """Make the repository the current folder, because configs import each other."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def shipped() -> TrainConfig:
    return load_config("configs/llama3/cpt_8b.py")


def load_error(path: str, *overrides: str) -> str:
    """Return the message of the UserError that loading ``path`` raises; check that it is one
    line."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_json_round_trip(name, tmp_path):
    config = load_config(f"configs/llama3/{name}.py")
    save_config(config, tmp_path / "config.json")
    assert load_config(str(tmp_path / "config.json")) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_stages_survive_json(shipped, tmp_path):
    staged = replace(shipped, data=replace(shipped.data, almr=((0, 0.29), (100, 1.0))))
    save_config(staged, tmp_path / "config.json")
    again = load_config(str(tmp_path / "config.json"))
    assert again == staged
    assert again.data.almr_stages() == ((0, Fraction(29, 100)), (100, Fraction(1)))


def test_overrides(shipped):
    assert load_config("configs/llama3/cpt_8b.py", []) == shipped
    changed = load_config(
        "configs/llama3/cpt_8b.py",
        ["--data.almr", "0.29", "--num_steps", "7", "--compute.remat", "dots"],
    )
    assert changed == replace(
        shipped,
        num_steps=7,
        data=replace(shipped.data, almr=0.29),
        compute=replace(shipped.compute, remat="dots"),
    )
    assert changed.data.almr_stages() == ((0, Fraction(29, 100)),)
    staged = load_config("configs/llama3/cpt_8b.py", ["--data.almr", "0", "0.3", "100", "1.0"])
    assert staged.data.almr == ((0, 0.3), (100, 1.0))


def test_weights_of_stages_and_kinds_are_options(shipped):
    path, weight = "configs/llama3/cpt_8b.py", "--data.original.0.weight"
    staged = load_config(path, [weight, "0", "1.0", "1000", "0.5"]).data.original[0]
    assert staged == replace(shipped.data.original[0], weight=((0, 1.0), (1000, 0.5)))
    assert staged.weight_stages() == ((0, Fraction(1)), (1000, Fraction(1, 2)))
    assert load_config(path, [weight, "3"]).data.original[0].weight == 3.0
    kind = load_config(path, ["--data.original.0.kind", "documents"]).data.original[0].kind
    assert kind == "documents"
    assert "WEIGHT|STEP WEIGHT ..., in numbers" in load_error(path, weight, "0", "1.0", "9")


def test_options_add_corpora(shipped, tmp_path):
    size = len(shipped.data.additional)
    option = f"--data.additional.{size}"
    config = load_config(
        "configs/llama3/cpt_8b.py",
        [
            f"{option}.source=ja.jsonl",
            f"{option}.name",
            "ja",
            f"{option}.weight",
            "0",
            "0",
            "9",
            "2.0",
        ]
        + [f"--data.additional.{size + 1}.{name}={name}2" for name in ("name", "source")],
    )
    added = CorpusConfig("ja", "ja.jsonl", ((0, 0.0), (9, 2.0))), CorpusConfig("name2", "source2")
    assert config.data.additional == (*shipped.data.additional, *added)
    save_config(config, tmp_path / "config.json")
    again = load_config(str(tmp_path / "config.json"), [f"{option}.weight", "1.5"])
    assert again.data.additional[size] == replace(added[0], weight=1.5)
    stage = [f"--stages.1.data.heldout.2.{name}=x" for name in ("name", "source")]
    pipeline = load_config("configs/demo/pipeline.py", stage, PipelineConfig)
    assert [len(stage.data.heldout) for stage in pipeline.stages][:2] == [2, 3]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--data.additional.1.name", "ja"], "set --data.additional.1.source too"),
        (["--data.additional.1.weight", "2"], "set --data.additional.1.name too"),
        (["--data.additional.2.name", "ja"], "so the next one is --data.additional.1;"),
        (
            ["--data.additional.1.name=zh", "--data.additional.1.source=x"],
            "two corpora are named 'zh'",
        ),
        (
            [
                "--data.additional.1.name=a",
                "--data.additional.1.source=x",
                "--data.additional.1.k=1",
            ],
            "unknown field 'data.additional.1.k'",
        ),
    ],
)
def test_incomplete_corpora_name_the_remedy(overrides, expected):
    assert expected in load_error("configs/llama3/cpt_8b.py", *overrides)


@pytest.mark.parametrize("almr", ["1.5", "-0.1"])
def test_almr_outside_zero_to_one_is_rejected(almr, shipped):
    assert "data.almr" in load_error("configs/llama3/cpt_8b.py", f"--data.almr={almr}")
    with pytest.raises(UserError, match=r"must be in \[0, 1\]; set a share of tokens"):
        replace(shipped.data, almr=float(almr))


@pytest.mark.parametrize("stages", [(), ((5, 0.3),), ((0, 0.3), (0, 0.4)), ((0, 0.1), (9, 1.2))])
def test_invalid_stages_are_rejected(stages, shipped):
    with pytest.raises(UserError, match="data.almr"):
        replace(shipped.data, almr=stages)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--data.almrr", "0.3"], "did you mean 'data.almr'?"),
        (["--num_step", "3"], "did you mean 'num_steps'?"),
        (["--optimizer.peak_learning_rat=1"], "did you mean 'optimizer.peak_learning_rate'?"),
        (["--num_steps", "many"], "'many'"),
        (["--data.almr", "33%"], "data.almr='33%' must be SHARE|STEP SHARE ..., in numbers."),
        (["--data.almr", "0", "0.3", "100"], "data.almr='0', '0.3', '100' must be SHARE|STEP"),
        (["--num_steps"], "num-steps"),
        (["--num_steps", "0"], "num_steps=0"),
        (["--compute.remat", "fulll"], "'fulll'"),
        (["--microbatch_size", "7"], "microbatch_size=7"),
        (["--lora.rank", "7"], "lora.rank: this config has no such section"),
        (["--data.chat.seed", "7"], "write chat=ChatConfig(...) in the file"),
    ],
)
def test_invalid_overrides_name_the_field(overrides, expected):
    assert expected in load_error("configs/llama3/cpt_8b.py", *overrides)


def change(values: dict, place: list, new: object) -> None:
    for key in place[:-1]:
        values = values[key]
    values[place[-1]] = new


@pytest.mark.parametrize(
    ("place", "new", "expected"),
    [
        (["num_stepz"], 3, "unknown field 'num_stepz'; did you mean 'num_steps'?"),
        (["data", "almrs"], 0.3, "did you mean 'almr'?"),
        (["num_steps"], "3", "num_steps='3' must be int"),
        (["num_steps"], True, "num_steps=True must be int"),
        (["model", "tied_embeddings"], 1, "tied_embeddings=1 must be bool"),
        (["model"], 3, "must be an object with the fields of ModelConfig"),
        (["data", "original"], "en", "must be a list"),
        (["data", "original", 0, "weight"], 0, "must be a finite number above 0"),
        (["data", "almr"], 7, "data.almr=7"),
        (["compute", "dtype"], "float16", "must be one of 'bfloat16', 'float32'"),
        (["model", "rope_scaling"], {"factor": 8}, "field 'low_freq_factor' is missing"),
        (["objective", "z_los"], 0.1, "unknown field 'z_los'; did you mean 'z_loss'?"),
        (["data", "sequence_length"], 9000, "must be at most model.context_length=8192"),
        (["model", "num_kv_heads"], 5, "num_kv_heads=5"),
    ],
)
def test_invalid_json_fields_name_the_field(place, new, expected, shipped, tmp_path):
    values = to_dict(shipped)
    change(values, place, new)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert expected in load_error(str(path))


@pytest.mark.parametrize(
    ("place", "new"),
    [
        (["checkpoint", "every_steps"], 0),
        (["checkpoint", "keep"], 0),
        (["evaluation", "every_steps"], 0),
        (["evaluation", "batch_size"], 0),
        (["compute", "loss_chunk_tokens"], 0),
        (["model", "num_kv_heads"], 0),
        (["model", "num_layers"], -1),
        (["data", "max_epochs"], float("inf")),
        (["data", "almr"], float("nan")),
        (["data", "original", 0, "weight"], float("nan")),
        (["optimizer", "clip_norm"], 0),
        (["optimizer", "peak_learning_rate"], float("nan")),
        (["optimizer", "warmup_steps"], -1),
        (["optimizer", "beta1"], -0.1),
        (["optimizer", "beta2"], 1.0),
        (["optimizer", "eps"], 0.0),
        (["optimizer", "final_learning_rate_fraction"], 10.0),
        (["model", "rope_theta"], 0.0),
        (["model", "norm_eps"], float("nan")),
        (["objective", "z_loss"], -1e-4),
        (["seed"], -1),
        (["seed"], 2**32),
        (["num_steps"], 10**30),
        (["global_batch_size"], 8 * 10**18),
        (["objective", "neftune_alpha"], float("nan")),
        (["data", "original", 0, "name"], "original"),
    ],
)
def test_numbers_out_of_range_name_the_field(place, new, shipped, tmp_path):
    values = to_dict(shipped)
    change(values, place, new)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert str(place[-1]) in load_error(str(path))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"loss": "orpo", "nll_weight": 0.2}, "loss=orpo includes that term"),
        ({"loss": "kto", "nll_weight": 0.2}, "loss=kto has no chosen answers"),
        (
            {"loss": "hinge", "label_smoothing": 0.1},
            "must be 0: only objective.loss=sigmoid and robust use it, not hinge",
        ),
        ({"loss": "robust", "label_smoothing": 0.5}, r"must be in \[0, 0.5\)"),
    ],
)
def test_invalid_preference_weights_are_rejected(fields, expected):
    with pytest.raises(UserError, match=expected):
        PreferenceConfig(**fields)


def test_kto_needs_two_rows_per_microbatch(shipped):
    data = replace(shipped.data, chat=ChatConfig())
    fields = {"objective": PreferenceConfig(loss="kto"), "data": data}
    replace(shipped, microbatch_size=2, **fields)
    with pytest.raises(UserError, match="at least 2"):
        replace(shipped, microbatch_size=1, **fields)


def test_python_config_with_wrong_types_is_rejected(tmp_path):
    wrong = {
        'optimizer=replace(config.optimizer, schedule="consine")': "schedule='consine' must be",
        'compute=replace(config.compute, dtype="bf16")': "dtype='bf16' must be",
        "evaluation=None": "evaluation=None must be an object with the fields",
        "num_steps=10.5": "num_steps=10.5 must be int",
        "seed={1}": "seed={1} must be int",
        'output=""': "output is empty",
        "optimizer=OptimizerConfig(peak_learning_rate=None)": "peak_learning_rate=None must be",
        'data=replace(config.data, additional=("zh", "x"))': "the fields of CorpusConfig",
        "data=replace(config.data, almr='0.29')": "almr='0.29' must be",
        "seed=1 // 0": "ZeroDivisionError",
    }
    for number, (section, expected) in enumerate(wrong.items()):
        path = tmp_path / f"{number}.py"
        path.write_text(
            "from dataclasses import replace\nfrom configs.llama3.cpt_8b import config\n"
            f"from llama_cpt.config.schema import *\nconfig = replace(config, {section})\n"
        )
        with pytest.raises(UserError) as caught:
            load_config(str(path))
        assert str(path) in str(caught.value) and expected in str(caught.value)


def test_variable_of_a_config_file_is_read_by_name(tmp_path):
    path = tmp_path / "runs.py"
    path.write_text(
        "from dataclasses import replace\nfrom configs.llama3.cpt_8b import config\n"
        "longer = replace(config, num_steps=9)\n"
    )
    assert load_config(f"{path}:longer").num_steps == 9
    assert load_config(f"{path}:config", ["--num-steps", "7"]).num_steps == 7
    assert "does not define `other = TrainConfig(...)`" in load_error(f"{path}:other")
    literal = tmp_path / "a.py:config"
    literal.write_text("{}")
    assert "is missing" in load_error(str(literal))


def test_lists_and_dicts_are_converted_to_sections(shipped):
    """A section built from plain JSON values equals, and hashes as, the original one."""
    made = TrainConfig(**to_dict(shipped))
    assert made == shipped and hash(made) == hash(shipped)
    stages = replace(shipped.data, almr=[[0, 0.1], [500, 1]])
    assert stages.almr == ((0, 0.1), (500, 1.0)) and len(stages.almr_stages()) == 2


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert (
        load_config("configs/llama3/cpt_8b.py", ["--output", "~/runs/x"]).output
        == "/home/me/runs/x"
    )


def test_missing_architecture_constant_is_an_error(shipped, tmp_path):
    values = to_dict(shipped)
    del values["model"]["rope_theta"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert "'rope_theta' is missing" in load_error(str(path))


def test_shipped_configs_that_share_rows_prepare_the_same_ones():
    """Two configs with one folder of rows must agree in everything that makes the rows."""
    shared = {}
    for path in Path(ROOT, "configs").rglob("*.py"):
        config = runpy.run_path(str(path)).get("config")
        if isinstance(config, TrainConfig):
            made = config.data.sequence_length, config.data.chat, type(config.objective)
            shared.setdefault(config.data.prepared, set()).add(made)
    assert len(shared) > 5
    assert {prepared for prepared, made in shared.items() if len(made) > 1} == set()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("absent.py", None, "no such config file"),
        ("empty.py", "", "does not define `config = TrainConfig(...)`"),
        ("syntax.py", "a = 1\nconfig = (\n", ":2:"),
        (
            "typo.py",
            "from llama_cpt.config.schema import MeshConfig\nMeshConfig(fspd=1)\n",
            "'fspd'",
        ),
        ("import.py", "import no_such_module_at_all\n", "no_such_module_at_all"),
        ("name.py", "config = TrainConfg()\n", "TrainConfg"),
        ("not.json", "{", "not JSON"),
    ],
)
def test_invalid_files_are_one_line_errors(name, content, expected, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    line = load_error(str(path))
    assert str(path) in line and expected in line


def test_command_prints_a_config_error_in_one_line():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llama_cpt.train",
            "configs/llama3/cpt_8b.py",
            "--data.almrr",
            "0.3",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == USAGE
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def test_overrides_of_a_pipeline_stage():
    path = "configs/demo/pipeline.py"
    config = load_config(
        path, ["--stages.1.num-steps", "7", "--max-new-tokens", "9"], PipelineConfig
    )
    assert [stage.num_steps for stage in config.stages][1] == 7 and config.max_new_tokens == 9
    with pytest.raises(UserError, match=r"'stages.1.num_step'; did you mean 'stages.1.num_steps'"):
        load_config(path, ["--stages.1.num-step", "7"], PipelineConfig)
    with pytest.raises(UserError, match=r"does not define `config = PipelineConfig"):
        load_config("configs/llama3/cpt_8b.py", (), PipelineConfig)
