"""Adapters for tests, and run folders that contain them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.fields import to_dict
from llama_cpt.config.schema import (
    CorpusConfig,
    DataConfig,
    LoraConfig,
    OptimizerConfig,
    TrainConfig,
)
from llama_cpt.model.llama import Llama
from llama_cpt.model.lora import Adapters, cast_model
from llama_cpt.weights.lora_base_check import NOTED, checksums

LORA = LoraConfig(rank=4, alpha=6.0)


def adapters_of(model: Llama, lora: LoraConfig = LORA, *, drawn: bool) -> Adapters:
    """Return new adapters for ``model``; if ``drawn``, B is random instead of 0."""
    adapters = Adapters(lora, model, jax.random.key(1))
    for number, target in enumerate(lora.targets if drawn else ()):
        b = getattr(adapters, target).b
        b[...] = 0.2 * jax.random.normal(jax.random.key(number), b.shape)
    return adapters


def lora_run(folder: Path, base: str, model: Llama, adapters: Adapters) -> Path:
    """Write a LoRA run like one of ``train`` and return its folder.

    ``base`` is the path of the base model's weights and ``model`` has the same weights.
    """
    config = TrainConfig(
        output=str(folder),
        model=model.config,
        data=DataConfig("/gone", "rows", 16, 1.0, additional=(CorpusConfig("zh", "zh.jsonl"),)),
        optimizer=OptimizerConfig(1e-3),
        num_steps=9,
        global_batch_size=8,
        init_from=base,
        lora=LoraConfig(LORA.rank, LORA.alpha, adapters.targets),
    )
    about = {"step": 4, "rows_consumed": 32, "config": to_dict(config)}
    about[NOTED] = checksums(cast_model(jax.tree.map(jnp.copy, model), config.compute.dtype))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    with CheckpointManager(str(folder / CHECKPOINTS_FOLDER)) as checkpoints:
        checkpoints.save(4, {"trained": adapters, "opt_state": {}}, about)
    return folder
