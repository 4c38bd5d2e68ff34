"""Configs of `make study`, which trains an English model on Chinese and on Arabic generated text.

The names of the configs are `configs/demo/study.py:base`, `:sweep_zh`, `:sweep_ar` and `:cpt_ar`.
"""

from dataclasses import replace

from configs.demo.base import config as demo
from llama_cpt.config.schema import (
    CheckpointConfig,
    CorpusConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainConfig,
)
from llama_cpt.config.sweep import AxisConfig, SweepConfig

FOLDER = "runs/world_study"
WORLD = f"{FOLDER}/world"


def corpus(code: str, part: str) -> tuple[CorpusConfig, ...]:
    """Return a tuple of one corpus in language ``code``; ``part`` is ``train`` or ``heldout``."""
    return (CorpusConfig(code, f"{WORLD}/{code}.{part}.jsonl"),)


base = replace(
    demo,
    output=f"{FOLDER}/base",
    model=replace(
        demo.architecture, embed_dim=64, mlp_dim=192, num_layers=2, num_heads=2, num_kv_heads=1
    ),
    data=replace(
        demo.data,
        tokenizer=f"{FOLDER}/tokenizer.model",
        prepared=f"{FOLDER}/prepared",
        original=corpus("en", "train"),
        heldout=corpus("en", "heldout"),
    ),
    num_steps=700,
    checkpoint=CheckpointConfig(every_steps=350, keep=1),
    evaluation=EvaluationConfig(
        every_steps=350, early_evaluations=False, documents=50, batch_size=16
    ),
)


def cpt(code: str) -> TrainConfig:
    """Return the config that trains the base model on the language ``code``."""
    data = replace(
        base.data,
        almr=0.33,
        additional=corpus(code, "train"),
        heldout=corpus(code, "heldout") + corpus("en", "heldout"),
    )
    return replace(
        base,
        output=f"{FOLDER}/recommended_{code}",
        init_from=base.output,
        data=data,
        optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=20),
        num_steps=200,
        evaluation=EvaluationConfig(
            every_steps=100, early_evaluations=False, documents=50, batch_size=16
        ),
    )


def sweep(code: str) -> SweepConfig:
    """Return the sweep over ALMRs and learning rates for the language ``code``."""
    return SweepConfig(
        output=f"{FOLDER}/en+{code}",
        train=cpt(code),
        pair=f"en+{code}",
        axes=(
            AxisConfig("data.almr", (0.15, 0.25, 0.4, 0.6)),
            AxisConfig("optimizer.peak_learning_rate", (1.5e-3, 3e-3, 6e-3, 1.2e-2)),
        ),
    )


sweep_zh, sweep_ar = sweep("zh"), sweep("ar")
# CPT on Arabic, for the ALMR and the learning rate that the law recommends. If several language
# pairs have the most runs, the law's report is about the first of them in alphabetical order, which
# is en+ar.
cpt_ar = cpt("ar")
