"""Weighted sums of models, compared with sums in NumPy's float64."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.torch import load_file
import torch
import transformers

from llama_cpt.convert import main
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.export import to_hf
from llama_cpt.weights.hf_weights import load_hf
from tests.model.lora_runs import LORA, adapters_of, lora_run
from tests.weights.hf_models import add_tokenizer, save_llama

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def folders(tmp_path):
    """Three models of one shape: two bfloat16 folders, of which one is sharded, and a float32
    folder with a chat template."""
    found = [tmp_path / name for name in ("cpt", "instruct", "base")]
    for seed, (folder, dtype) in enumerate(
        zip(found, (torch.bfloat16, torch.float32, torch.bfloat16), strict=True)
    ):
        save_llama(folder, dtype, "1GB" if seed else "60KB", seed=seed, eos_token_id=127 - seed)
        add_tokenizer(folder, template=TEMPLATE if seed == 1 else "")
        (folder / "LICENSE.txt").write_text("other terms" if seed == 1 else "the terms")
    return found


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a Hugging Face folder in float64."""
    files = (load_file(file) for file in folder.glob("*.safetensors"))
    return {name: tensor.double().numpy() for file in files for name, tensor in file.items()}


def expected_sum(weights: list[float], models: list[dict[str, np.ndarray]]):
    """Return the weighted sum in float64, and the sum of the magnitudes of its terms."""
    terms = {
        name: np.stack([w * model[name] for w, model in zip(weights, models, strict=True)])
        for name in models[0]
    }
    total = {name: term.sum(0) for name, term in terms.items()}
    return total, {name: np.abs(term).sum(0) for name, term in terms.items()}


def check_float32(folder: Path, weights: list[float], models: list[dict[str, np.ndarray]]) -> None:
    """Check that each value has an error of at most three roundings to float32."""
    found, (total, size) = arrays(folder), expected_sum(weights, models)
    assert found.keys() == total.keys()
    for name, values in found.items():
        assert (np.abs(values - total[name]) <= 3 * 2.0**-24 * size[name]).all(), name


def test_chat_vector_of_a_run(folders, tmp_path, capsys):
    cpt, instruct, base = folders
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["from-hf", str(cpt), str(run)]) == 0
    terms = [f"{run}=1", f"{instruct}=0.7", f"{base}=-0.7"]
    choices = ["--dtype", "float32", "--tokenizer-source", str(instruct)]
    assert main(["merge", str(out), *terms, *choices]) == 0
    assert f"{out}: weighted sum of 3 models in float32" in capsys.readouterr().out
    check_float32(out, [1, 0.7, -0.7], [arrays(folder) for folder in folders])
    # The prompts are those of the instruction-tuned model.
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (instruct / name).read_bytes()
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 126
    assert (out / "LICENSE.txt").read_text() == "the terms"
    assert (out / "LICENSE-2.txt").read_text() == "other terms"
    transformers.AutoModelForCausalLM.from_pretrained(out)
    card = (out / "README.md").read_text()
    for row in ("| 1 | run | cpt |", "| 7/10 | instruct |  |", "| -7/10 | base |  |"):
        assert row in card
    assert "| run | manifest of checkpoint 0 | " in card and str(tmp_path) not in card
    assert "[LICENSE.txt](LICENSE.txt), [LICENSE-2.txt](LICENSE-2.txt)" in card


def test_average_of_tied_models_is_rounded_once(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for seed, folder in enumerate(folders):
        save_llama(folder, torch.bfloat16, seed=seed, tie_word_embeddings=True)
        add_tokenizer(folder)
    assert main(["merge", str(tmp_path / "out"), *(f"{folder}=1/3" for folder in folders)]) == 0
    found = arrays(tmp_path / "out")
    assert "lm_head.weight" not in found and "model.embed_tokens.weight" in found
    total, size = expected_sum([1 / 3] * 3, [arrays(folder) for folder in folders])
    exact = []
    for name, values in found.items():
        error = 4 * 2.0**-24 * size[name]
        low, high = (
            (total[name] + bound).astype(ml_dtypes.bfloat16).astype(np.float64)
            for bound in (-error, error)
        )
        assert ((low <= values) & (values <= high)).all(), name
        exact.append(low == high)
    assert np.mean(np.concatenate([one.ravel() for one in exact])) > 0.9


@pytest.mark.slow
def test_adapters_are_merged_before_the_sum(tmp_path, caplog):
    base, other = save_llama(tmp_path / "base"), save_llama(tmp_path / "other", seed=1)
    model = load_hf(base)
    run = lora_run(tmp_path / "run", base, model, adapters_of(model, LORA, drawn=True))
    to_hf(str(run), str(tmp_path / "whole"), dtype="float32")
    terms = [f"{run}=0.25", f"{other}=0.75", "--dtype", "float32"]
    assert main(["merge", str(tmp_path / "out"), *terms]) == 0
    models = [arrays(tmp_path / "whole"), arrays(Path(other))]
    check_float32(tmp_path / "out", [0.25, 0.75], models)
    assert "no tokenizer is written" in caplog.text
    card = (tmp_path / "out/README.md").read_text()
    assert "| run | base weights: model.safetensors | " in card


def test_all_differences_are_one_error_before_work(folders, tmp_path):
    cpt, instruct, base = folders
    save_llama(instruct, seed=1, num_hidden_layers=2)
    add_tokenizer(base, first=1)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"^the models cannot be merged\. ") as caught:
        main(["merge", str(out), f"{cpt}=1", f"{instruct}=1", f"{base}=-1"])
    message = str(caught.value)
    assert f"model.num_layers=3, but {instruct} has 2" in message
    assert f"{base}: 126 tokens differ; token 0 is '<0x01>', but '<0x00>' in {cpt}." in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "cpt", "instruct"]


def test_sum_that_is_not_finite_leaves_nothing(folders, tmp_path):
    huge = tmp_path / "huge"
    model = transformers.LlamaForCausalLM.from_pretrained(folders[1])
    with torch.no_grad():
        model.model.norm.weight[3] = 3e38
    model.save_pretrained(huge)
    add_tokenizer(huge)
    with pytest.raises(UserError, match="norm: the sum is not finite"):
        main(["merge", str(tmp_path / "out"), f"{huge}=2", f"{folders[1]}=-1"])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (["A=0.5", "B=0.4"], "weights 1/2, 2/5 sum to 9/10, not to 1"),
        (["A=x", "B=1"], "A=x: must be MODEL=WEIGHT"),
        (["A=nan", "B=1"], "A=nan: must be MODEL=WEIGHT"),
        (["A=1/0"], "A=1/0: must be MODEL=WEIGHT"),
        (["A=1e999999999"], "A=1e999999999: must be MODEL=WEIGHT"),
        (["A", "B"], "A: must be MODEL=WEIGHT"),
        (["A=1", "--tokenizer-source", "B"], "--tokenizer-source B: is not one of the merged"),
        (["absent=1"], "absent: no such folder"),
    ],
)
def test_invalid_terms_are_errors(terms, message, tmp_path):
    with pytest.raises(UserError, match=message):
        main(["merge", str(tmp_path / "out"), *terms])
    assert not list(tmp_path.iterdir())
