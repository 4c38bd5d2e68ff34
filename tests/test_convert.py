"""Tests of the convert command: import, export, verification, and files next to the weights."""

import json
from pathlib import Path
import re
import subprocess
import sys
import tomllib
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import sentencepiece
import tokenizers
import torch
import transformers

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.fields import to_dict
from llama_cpt.config.loading import save_config
from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import CorpusConfig, DataConfig, OptimizerConfig, TrainConfig
from llama_cpt.convert import main
from llama_cpt.runtime.errors import CHECK_FAILED, NEGATIVE_RESULT, USER_ERROR, UserError
from llama_cpt.weights import verify
from llama_cpt.weights.export import to_hf
from llama_cpt.weights.hf_weights import load_hf
from llama_cpt.weights.provenance import find_origin
from tests.weights.hf_models import save_llama

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def source(tmp_path):
    """A Hugging Face folder with tokenizer, license, policy and generation settings."""
    folder = tmp_path / "tiny-llama"
    save_llama(folder, torch.bfloat16, "60KB", bos_token_id=126, eos_token_id=[127, 125])
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(126)}
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    model = tokenizers.models.BPE(vocabulary, [], byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens(names)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ mine }}"}
    values |= dict(zip(("bos_token", "eos_token"), names, strict=True))
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "LICENSE.txt").write_text("the license")
    (folder / "USE_POLICY.md").write_text("the policy")
    return folder


COMPANIONS = (
    "LICENSE.txt",
    "USE_POLICY.md",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def stored(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def run_folder(folder: Path, model: ModelConfig, weights, init_from: str, tokenizer: str) -> Path:
    """Write a run folder as ``train`` does after 4 of 9 steps of 8 rows of 16 tokens."""
    config = TrainConfig(
        output=str(folder),
        model=model,
        data=DataConfig(
            tokenizer=tokenizer,
            prepared="rows",
            sequence_length=16,
            almr=((0, 0.5), (2, 0.33)),
            additional=(CorpusConfig("zh-web", "zh.jsonl"),),
            original=(CorpusConfig("en-books", "a.jsonl"), CorpusConfig("en-web", "b.jsonl", 3.0)),
        ),
        optimizer=OptimizerConfig(2.5e-4, warmup_steps=2),
        num_steps=9,
        global_batch_size=8,
        init_from=init_from,
    )
    folder.mkdir(parents=True)
    save_config(config, folder / "config.json")
    metadata = {"step": 4, "rows_consumed": 32, "config": to_dict(config), "fingerprints": {}}
    with CheckpointManager(str(folder / CHECKPOINTS_FOLDER)) as checkpoints:
        checkpoints.save(4, {"trained": weights, "opt_state": {"mu": np.ones(3)}}, metadata)
    lines = [
        {"step": step, "eval/zh/bits_per_byte": value, "train/loss": 1.0}
        for step, value in ((0, 2.5), (4, 1.25), (8, 0.5))
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_round_trip_through_a_checkpoint_verifies(source, tmp_path, capsys):
    checkpoint, output = tmp_path / "deep" / "checkpoint", tmp_path / "out"
    assert main(["from-hf", str(source), str(checkpoint)]) == 0
    assert main(["verify", str(source), str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    assert (
        "30 tensors" in printed and ": 0 differ" in printed and "max abs difference 0 (" in printed
    )
    assert "logits: max abs difference" in printed and "KL" in printed
    assert float(printed.split("logits: max abs difference ")[1].split(" ")[0]) < 1e-4
    assert main(["to-hf", str(checkpoint), str(output), "--shard-gb", "0.00006"]) == 0
    before, after = stored(source), stored(output)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
    for name in COMPANIONS:
        assert (output / name).read_bytes() == (source / name).read_bytes(), name
    config = json.loads((output / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (126, [127, 125])
    card = (output / "README.md").read_text()
    assert "Started from `tiny-llama`." in card and "license_link: LICENSE.txt" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_verify_fails_on_weights_that_are_not_finite(value, source, tmp_path, capsys, monkeypatch):
    """Verification fails although both sides have the same bits."""
    (file, *_) = (f for f in source.glob("*.safetensors") if "model.norm.weight" in load_file(f))
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = value
    save_file(tensors, file, metadata={"format": "pt"})
    checkpoint = str(tmp_path / "checkpoint")
    with pytest.raises(UserError, match="norm contained NaN or infinity"):
        main(["from-hf", str(source), checkpoint])
    # Earlier versions wrote such checkpoints.
    monkeypatch.setattr("llama_cpt.checkpoint.checkpoint.non_finite", lambda arrays: [])
    assert main(["from-hf", str(source), checkpoint]) == 0
    assert main(["verify", str(source), checkpoint]) == CHECK_FAILED
    printed = capsys.readouterr()
    assert "  model.norm.weight: 0 of 48, max abs difference nan" in printed.out
    assert f"error: {checkpoint}: differs from {source}" in printed.err


@pytest.mark.parametrize("reason", ["torch", "memory", "load"])
def test_verify_without_logits_is_not_a_success(reason, source, tmp_path, monkeypatch, capsys):
    checkpoint = str(tmp_path / "checkpoint")
    assert main(["from-hf", str(source), checkpoint]) == 0
    with monkeypatch.context() as patch:
        if reason == "torch":
            patch.setattr("importlib.util.find_spec", lambda name: None)
        elif reason == "memory":
            patch.setattr(verify, "physical_memory", lambda: 1000)
        else:
            failing = "transformers.LlamaForCausalLM.from_pretrained"
            patch.setattr(failing, Mock(side_effect=KeyError("rope")))
        status = main(["verify", str(source), checkpoint])
    remedy = {
        "torch": f"run `pip install '{pin('torch')}' '{pin('transformers')}'`.",
        "memory": "use a machine with more memory.",
        "load": f"transformers cannot load {source} ('rope')",
    }[reason]
    printed = capsys.readouterr().out
    assert status == NEGATIVE_RESULT and remedy in printed
    assert "logits: not compared, so only the weights are verified: " in printed


def pin(package: str) -> str:
    """Return the version of ``package`` that the project requires, as in pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = extras["optional-dependencies"]["test"]
    return next(line for line in lines if re.match(rf"{package}\b[^-]", line))


def test_padded_model_makes_the_round_trip(source, tmp_path):
    """The model has 160 embedding rows, and its tokenizer has 128 tokens."""
    save_llama(source, torch.bfloat16, "1GB", vocab_size=160)
    (source / "model.safetensors.index.json").unlink()
    checkpoint, output = str(tmp_path / "checkpoint"), tmp_path / "out"
    assert main(["from-hf", str(source), checkpoint]) == 0
    assert main(["verify", str(source), checkpoint]) == 0
    assert main(["to-hf", checkpoint, str(output)]) == 0
    assert json.loads((output / "config.json").read_text())["vocab_size"] == 160
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(stored(output)[name], load_file(source / "model.safetensors")[name])
    assert len(transformers.AutoTokenizer.from_pretrained(output)) == 128


def test_two_sets_of_weights_are_not_verified(source, tmp_path):
    checkpoint = str(tmp_path / "checkpoint")
    assert main(["from-hf", str(source), checkpoint]) == 0
    save_file({"model.norm.weight": torch.zeros(48)}, source / "model.safetensors")
    with pytest.raises(UserError, match="holds two sets of weights"):
        main(["verify", str(source), checkpoint])


@pytest.mark.parametrize("content", ['{"init_from": 3}', "[]", '{"a":' * 100_000, '{"init_from":'])
def test_damaged_config_of_a_run_is_one_error(content, source, tmp_path, caplog):
    model = load_hf(str(source))
    run = run_folder(tmp_path / "run", model.config, model, str(source), str(source))
    (run / "config.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(f"{run}/config.json: ")):
        find_origin(str(run))


def test_export_in_a_narrower_type_verifies(source, tmp_path, capsys):
    model = load_hf(save_llama(tmp_path / "wide", vocab_size=128))
    run = run_folder(tmp_path / "run", model.config, model, str(source), str(source))
    assert main(["to-hf", str(run), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert main(["verify", str(tmp_path / "out"), str(run)]) == 0
    assert ": 0 differ after rounding" in capsys.readouterr().out


@pytest.mark.parametrize(("added", "status"), [(1e-4, 0), (2.45, 65), (np.nan, 65), (np.inf, 65)])
def test_verify_fails_on_logits_beyond_the_tolerance(added, status, source, tmp_path, monkeypatch):
    checkpoint = str(tmp_path / "checkpoint")
    assert main(["from-hf", str(source), checkpoint]) == 0
    ours = verify._our_logits

    def one_differs(*given: Any) -> np.ndarray:
        logits = np.array(ours(*given))
        logits[1, 2, 3] += added
        return logits

    monkeypatch.setattr(verify, "_our_logits", one_differs)
    assert main(["verify", str(source), checkpoint]) == status


def test_model_card_names_all_ancestor_runs(source, tmp_path, capsys):
    model = load_hf(str(source))
    changed = jax.tree.map(lambda leaf: leaf, model)
    changed.layers.key[...] = changed.layers.key[...].at[1, 2, 3].add(0.5)
    first = run_folder(tmp_path / "first", model.config, model, str(source), str(source))
    second = run_folder(
        tmp_path / "second", model.config, changed, str(first), str(source / "tokenizer.json")
    )
    to_hf(str(second), str(tmp_path / "out"), dtype="float32")
    output = tmp_path / "out"
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (126, 127)
    assert (output / "LICENSE.txt").read_text() == "the license"
    card = (output / "README.md").read_text()
    for fact in (
        "Started from `tiny-llama`, then run `first`.",
        "[LICENSE.txt](LICENSE.txt), [USE_POLICY.md](USE_POLICY.md)",
        "| steps | 4 of 9 |",
        "| tokens | 512 (32 rows of 16) |",
        "| peak learning rate | 0.00025 |",
        # 16 rows at 0.5 and 16 at 0.33: a target of 13.28 rows, 13 whole rows.
        "target 0.415, realized 0.40625",
        "| additional | zh-web | 208 |",
        "| zh/bits_per_byte | 2.5000 | 1.2500 |",
    ):
        assert fact in card, fact
    assert main(["verify", str(source), str(second)]) == CHECK_FAILED
    printed = capsys.readouterr().out
    assert ": 1 differ" in printed and "model.layers.1.self_attn.k_proj.weight: 1 of" in printed
    reloaded = load_hf(str(output))
    np.testing.assert_array_equal(reloaded.layers.key[...], changed.layers.key[...])


def test_export_without_its_base_logs_a_warning(source, tmp_path, caplog):
    model = load_hf(str(source))
    run = run_folder(tmp_path / "run", model.config, model, "/gone", str(source))
    to_hf(str(run), str(tmp_path / "out"))
    assert "license" in caplog.text
    assert not (tmp_path / "out" / "LICENSE.txt").exists()
    to_hf(str(run), str(tmp_path / "again"), base=str(source))
    assert (tmp_path / "again" / "LICENSE.txt").exists()


def test_unconvertible_tokenizer_is_copied(source, tmp_path, caplog):
    """The weights are exported, with an unchanged copy of the tokenizer."""
    model = load_hf(str(source))
    vocabulary = tmp_path / "unigram.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on a mat"] * 9),
        model_prefix=str(vocabulary.with_suffix("")),
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    run = run_folder(tmp_path / "run", model.config, model, "/gone", str(vocabulary))
    to_hf(str(run), str(tmp_path / "out"))
    assert "it removes spaces. The tokenizer is copied unchanged." in caplog.text
    assert (tmp_path / "out/tokenizer.model").read_bytes() == vocabulary.read_bytes()
    assert not (tmp_path / "out/tokenizer.json").exists() and stored(tmp_path / "out")


def test_export_without_its_tokenizer_logs_a_warning(source, tmp_path, caplog):
    model = load_hf(str(source))
    run = run_folder(tmp_path / "run", model.config, model, str(source), "/gone/tokenizer.model")
    to_hf(str(run), str(tmp_path / "out"))
    assert "run: data.tokenizer=/gone/tokenizer.model: no such folder. Restore the" in caplog.text
    assert stored(tmp_path / "out")
    to_hf(str(run), str(tmp_path / "again"), tokenizer=str(source))
    assert (tmp_path / "again" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["from-hf", "absent", "OUT"], "absent: no such folder"),
        (["to-hf", "absent", "OUT"], "absent: no such folder"),
        (["to-hf", "SOURCE", "OUT"], "contains no checkpoint"),
        (["verify", "SOURCE", "absent"], "absent: no such folder"),
        (["from-hf", "SOURCE", "SOURCE"], "already exists"),
        (["from-hf", "SOURCE", ""], "OUTPUT is empty"),
        (["to-hf", "absent", "OUT", "--shard-gb", "nan"], "must be a finite number"),
        (
            ["to-hf", "absent", "OUT", "--shard-gb", "0"],
            "--shard-gb=0.0 must be a finite",
        ),
    ],
)
def test_user_errors_write_nothing(arguments, message, source, tmp_path):
    paths = {"SOURCE": str(source), "OUT": str(tmp_path / "out")}
    with pytest.raises(UserError, match=message):
        main([paths[word] if word in paths else word for word in arguments])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.slow
def test_user_error_is_a_one_line_message(tmp_path):
    output = str(tmp_path / "out")
    command = [sys.executable, "-m", "llama_cpt.convert", "from-hf", str(tmp_path), output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == USER_ERROR
    remedy = "copy it from the original model's folder"
    assert done.stderr == f"error: {tmp_path}/config.json: no such file; {remedy}.\n"
    assert not list(tmp_path.iterdir())
