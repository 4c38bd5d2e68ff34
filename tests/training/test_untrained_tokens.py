"""The warning about tokens of the chat template on which the initial model is untrained."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.checkpoint.run_folder import save_weights
from llama_cpt.config.fields import to_dict
from llama_cpt.config.schema import ChatConfig, CorpusConfig, LoraConfig, MeshConfig
from llama_cpt.model.llama import Llama
from llama_cpt.parallel.mesh import make_mesh, with_shardings
from llama_cpt.training.untrained_tokens import untrained_tokens
from tests.runs import run_of
from tests.tiny_run import tiny_model

LLAMA3_NAMES = "<|start_header_id|>, <|end_header_id|>, <|eot_id|>"


def with_rows(model: Llama, ids: list[int], scale: float) -> Llama:
    """Set the embeddings of ``ids`` to one common row, plus a random part of norm ``scale``."""
    table = np.asarray(model.embedding[...])
    norm = np.median(np.linalg.norm(table, axis=1))
    noise = np.random.default_rng(0).normal(size=(len(ids), table.shape[1]))
    noise *= scale * norm / np.linalg.norm(noise, axis=1, keepdims=True)
    model.embedding[...] = model.embedding[...].at[jnp.array(ids)].set(table[ids[0]] + noise)
    return model


def test_rows_near_zero_or_near_each_other_are_untrained():
    config = replace(tiny_model(64), tied_embeddings=False)
    model = with_rows(Llama(config, jax.random.key(0)), [7, 9, 20], 0.01)
    assert model.lm_head is not None
    model.lm_head[...] = model.lm_head[...].at[33].multiply(0.01)
    mesh = make_mesh(MeshConfig(1, 2, 2, 2), jax.devices())
    shardings = jax.tree.map(lambda one: one.sharding, with_shardings(model, mesh))
    with jax.set_mesh(mesh):
        placed = jax.device_put(model, shardings)
        assert untrained_tokens(placed, [5, 7, 9, 20, 21, 33, 34]) == [7, 9, 20, 33]


@pytest.fixture
def config(make_config, corpora, tmp_path):
    """A config of SFT that starts from ``tmp_path/base``."""
    made = make_config(tmp_path / "run", init_from=str(tmp_path / "base"))
    chats = (CorpusConfig("zh", str(corpora / "zh.chats.jsonl")),)
    data = replace(made.data, additional=chats, original=(), almr=1.0, chat=ChatConfig())
    data = replace(data, prepared=str(tmp_path / "rows"), max_epochs=99.0)
    return replace(made, data=data)


@pytest.mark.parametrize(
    ("scale", "lora", "message"),
    [
        (0.001, None, f"writes {LLAMA3_NAMES}, and the initial model is untrained"),
        (0.001, LoraConfig(2, 2.0), "LoRA does not train them; train all weights"),
        (0.2, None, None),
    ],
)
def test_chat_run_names_its_untrained_tokens_once(config, scale, lora, message, tmp_path, caplog):
    run_config = replace(config, lora=lora)
    model, folder = Llama(config.model, jax.random.key(0)), tmp_path / "base"
    folder.mkdir()
    ids = [3, 4, 5]
    metadata = {"step": 0, "rows_consumed": 0, "config": {"model": to_dict(config.model)}}
    save_weights(str(folder), with_rows(model, ids, scale), metadata)
    run = run_of(run_config)
    assert [run.tokenizer.decode([one]) for one in ids] == LLAMA3_NAMES.split(", ")
    run.start()
    found = [record.getMessage() for record in caplog.records if "untrained" in record.message]
    assert len(found) == (message is not None)
    assert message is None or message in found[0]
