"""Configs of the study in `docs/notes/study.md`: English models of three sizes, CPT on Chinese.

`benchmarks/study.py` builds the vocabulary and runs the whole study. The text is in the folder
LLAMA_CPT_DATA (default: ../shared/data).
"""

from dataclasses import replace

from configs.real_text.base import CORPUS
from configs.real_text.base import config as real_text
from llama_cpt.config.schema import (
    CheckpointConfig,
    CorpusConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainConfig,
)

FOLDER = "runs/study"

SMALL = replace(
    real_text.architecture,
    vocab_size=3072,
    embed_dim=48,
    mlp_dim=128,
    num_layers=3,
    num_heads=3,
    num_kv_heads=1,
    head_dim=16,
    context_length=256,
)
MIDDLE = replace(SMALL, embed_dim=64, mlp_dim=176, num_layers=4, num_heads=4, num_kv_heads=2)
LARGE = replace(SMALL, embed_dim=144, mlp_dim=416, num_layers=7, num_heads=9, num_kv_heads=3)

small = TrainConfig(
    output=f"{FOLDER}/base_small",
    model=SMALL,
    data=replace(
        real_text.data,
        tokenizer=f"{FOLDER}/tokenizer.model",
        prepared=f"{FOLDER}/prepared",
        sequence_length=256,
    ),
    optimizer=OptimizerConfig(peak_learning_rate=6e-3, warmup_steps=100),
    num_steps=1800,
    global_batch_size=8,
    compute=real_text.compute,
    checkpoint=CheckpointConfig(every_steps=600, keep=1),
    evaluation=EvaluationConfig(
        every_steps=600, early_evaluations=False, documents=64, batch_size=16
    ),
    log_every_steps=100,
)
middle = replace(
    small,
    output=f"{FOLDER}/base_middle",
    model=MIDDLE,
    optimizer=replace(small.optimizer, peak_learning_rate=5e-3),
)
large = replace(
    small,
    output=f"{FOLDER}/base_large",
    model=LARGE,
    optimizer=replace(small.optimizer, peak_learning_rate=3e-3),
)

CPT = replace(
    small,
    data=replace(
        small.data,
        almr=0.33,
        additional=(CorpusConfig("zh", f"{CORPUS}/zh/zh.train-*.jsonl.gz"),),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=40),
    num_steps=400,
    evaluation=replace(small.evaluation, every_steps=200),
)
