"""Tests of LoRA: new adapters change nothing; merged, attached and PEFT adapters are equal."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import (
    LoraConfig,
    MeshConfig,
    NextTokenConfig,
)
from llama_cpt.convert import main
from llama_cpt.data.batch import TokenBatch
from llama_cpt.model.llama import Llama
from llama_cpt.model.lora import Adapters, cast_model, merge_adapters, with_adapters
from llama_cpt.objectives.next_token import make_objective
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.export import to_hf
from llama_cpt.weights.lora_base_check import checksum
from tests.model.lora_runs import LORA, adapters_of, lora_run

CONFIG = ModelConfig(
    vocab_size=128,
    embed_dim=48,
    mlp_dim=80,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    rope_theta=1e4,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=False,
    context_length=256,
)
SHAPE = (2, 24)


def model_of(dtype: str = "float32") -> Llama:
    return Llama(CONFIG, jax.random.key(0), compute_dtype=dtype)


def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, SHAPE, dtype=np.int32)
    positions = np.broadcast_to(np.arange(SHAPE[1], dtype=np.int32), SHAPE)
    return jnp.asarray(tokens), jnp.asarray(positions), jnp.ones(SHAPE, jnp.int32)


def logits(model: Llama) -> np.ndarray:
    return np.asarray(jax.jit(Llama.__call__)(model, *inputs()))


def loss(model: Llama) -> np.ndarray:
    tokens, positions, segments = inputs()
    corpus, row = jnp.zeros(SHAPE, jnp.int32), jnp.zeros((SHAPE[0], 2), jnp.uint32)
    mask = jnp.ones(SHAPE, jnp.float32)
    batch = TokenBatch(tokens, jnp.roll(tokens, -1, 1), mask, segments, positions, corpus, row)
    objective = make_objective(
        NextTokenConfig(z_loss=1e-3), num_corpora=1, loss_chunk_tokens=16, seed=0
    )
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        return np.asarray(jax.jit(objective)(model, batch)[0])


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_new_adapters_leave_the_loss_unchanged_to_the_last_bit(dtype):
    model = model_of(dtype)
    new, drawn = (with_adapters(model, adapters_of(model, drawn=d)) for d in (False, True))
    assert loss(new) == loss(model) != loss(drawn)
    np.testing.assert_array_equal(logits(new), logits(model))


def test_weights_cast_to_the_compute_type_give_the_same_logits():
    model = model_of("bfloat16")
    adapters = adapters_of(model, drawn=True)
    before = logits(with_adapters(model, adapters))
    # ``cast_model`` deletes the arrays that it casts.
    kept = cast_model(model_of("bfloat16"), "bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {"bfloat16"}
    np.testing.assert_array_equal(logits(with_adapters(kept, adapters)), before)


@pytest.mark.parametrize("target", LORA.targets)
def test_merged_adapters_give_the_same_logits(target):
    model = model_of()
    adapters = adapters_of(model, LoraConfig(4, 6.0, (target,)), drawn=True)
    unmerged = logits(with_adapters(model, adapters))
    assert np.abs(unmerged - logits(model)).max() > 1e-3
    np.testing.assert_allclose(logits(merge_adapters(model, adapters)), unmerged, atol=1e-5)


def test_rank_above_that_of_the_matrix_is_rejected():
    with pytest.raises(UserError, match=r"lora.rank=25 .* 'key', 24; set a smaller rank"):
        Adapters(LoraConfig(25, 1.0, ("query", "key")), model_of(), jax.random.key(0))


def test_checksum_depends_on_every_value_and_its_position():
    array = jax.random.normal(jax.random.key(0), (3, 8, 16))
    seen = {int(checksum(array, "float32")), int(checksum(array, "bfloat16"))}
    seen |= {int(checksum(array.at[1, 2, 3].add(1e-6), "float32"))}
    seen |= {int(checksum(array[:, ::-1], "float32")), int(checksum(array[::-1], "float32"))}
    assert len(seen) == 5
    mesh = make_mesh(MeshConfig(1, 4, 2), jax.devices())
    cut = jax.device_put(array, jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor")))
    assert int(checksum(cut, "float32")) == int(checksum(array, "float32"))


@pytest.fixture
def exported(tmp_path):
    """A Hugging Face folder, a LoRA run based on it, and the logits of the adapted model."""
    pytest.importorskip("transformers")
    from llama_cpt.weights.hf_weights import load_hf
    from tests.weights.hf_models import save_llama

    base = save_llama(tmp_path / "base")
    model = load_hf(base)
    adapters = adapters_of(model, LoraConfig(4, 6.0, ("query", "key", "output", "up")), drawn=True)
    expected = logits(with_adapters(model, adapters))
    assert np.abs(expected - logits(model)).max() > 0.1
    return Path(base), lora_run(tmp_path / "run", base, model, adapters), expected


def torch_logits(model) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(inputs()[0])).long()).logits.numpy()


def test_peft_gives_the_same_logits(exported, tmp_path):
    peft = pytest.importorskip("peft")
    base, run, expected = exported
    output = tmp_path / "adapters"
    assert main(["to-hf", str(run), str(output), "--adapters"]) == 0
    model = peft.AutoPeftModelForCausalLM.from_pretrained(output)
    assert json.loads((output / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        str(base)
    )
    np.testing.assert_allclose(torch_logits(model), expected, atol=2e-5)
    card = (output / "README.md").read_text()
    assert "library_name: peft" in card and "rank 4, alpha 6, of query, key, output, up" in card


def test_merged_folder_gives_the_same_logits(exported, tmp_path):
    import transformers

    _, run, expected = exported
    to_hf(str(run), str(tmp_path / "merged"), dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(torch_logits(model), expected, atol=2e-5)


def test_adapters_can_be_based_on_a_run_with_adapters(exported, tmp_path):
    from llama_cpt.weights.hf_weights import load_hf
    from llama_cpt.weights.source import open_source

    _, run, _ = exported
    model = load_hf(str(exported[0]))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    first = open_source(str(run)).load(model, mesh)
    second = lora_run(tmp_path / "second", str(run), first, adapters_of(first, drawn=True))
    expected = logits(with_adapters(first, adapters_of(first, drawn=True)))
    loaded = open_source(str(second)).load(model, mesh)
    np.testing.assert_allclose(logits(loaded), expected, atol=2e-5)
    with open_source(str(second)).reader() as weights:
        for name in ("embedding", "layers/key", "layers/down"):
            part: Any = loaded
            for attribute in name.split("/"):
                part = getattr(part, attribute)
            np.testing.assert_allclose(weights.parameter(name), part[...], atol=1e-6)


def test_adapters_trained_on_a_run_need_an_export_of_that_run(exported, tmp_path):
    """peft cannot load a run folder, and the run's own base model has different weights."""
    peft = pytest.importorskip("peft")
    from llama_cpt.weights.hf_weights import load_hf
    from llama_cpt.weights.source import open_source

    base, run, _ = exported
    model = load_hf(str(base))
    first = open_source(str(run)).load(model, make_mesh(MeshConfig(), jax.devices()[:1]))
    second = lora_run(tmp_path / "second", str(run), first, adapters_of(first, drawn=True))
    export = ["to-hf", str(second), str(tmp_path / "out"), "--adapters"]
    for extra in ([], ["--base", str(run)]):
        with pytest.raises(UserError, match="Export it with `to-hf --dtype float32` and name the"):
            main([*export, *extra])
    with pytest.raises(UserError, match=f"--base {base}: .* differs from the weights that the"):
        main([*export, "--base", str(base)])
    assert not (tmp_path / "out").exists()
    main(["to-hf", str(run), str(tmp_path / "merged"), "--dtype", "float32"])
    assert main([*export, "--base", str(tmp_path / "merged")]) == 0
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "merged")
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = logits(with_adapters(first, adapters_of(first, drawn=True)))
    np.testing.assert_allclose(torch_logits(loaded), expected, atol=2e-5)


def test_missing_or_changed_base_is_rejected(exported, tmp_path):
    base, run, _ = exported
    from tests.weights.hf_models import save_llama

    base.rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match="run holds adapters.* were at .*base'; restore them at this path"
    ):
        to_hf(str(run), str(tmp_path / "out"))
    save_llama(base, seed=1)
    with pytest.raises(
        UserError, match="embedding differs from the weights that the adapters were"
    ):
        to_hf(str(run), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    main(["to-hf", str(run), str(tmp_path / "out"), "--adapters"])
    with pytest.raises(UserError, match="whole model and no adapters; drop --adapters"):
        main(["from-hf", str(base), str(tmp_path / "whole")])
        main(["to-hf", str(tmp_path / "whole"), str(tmp_path / "more"), "--adapters"])
