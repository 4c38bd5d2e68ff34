"""A small Llama trained on real English text, the initial model of ``configs/real_text/cpt.py``.

`python benchmarks/real_text.py` builds the vocabulary and trains both models. The text is in the
folder LLAMA_CPT_DATA (default: ../shared/data).
"""

import os

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import (
    CheckpointConfig,
    ComputeConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainConfig,
)

DATA = os.environ.get("LLAMA_CPT_DATA", "../shared/data")
CORPUS = os.path.join(DATA, "corpus")

config = TrainConfig(
    output="runs/real_text/base",
    model=ModelConfig(
        vocab_size=16384,
        embed_dim=192,
        mlp_dim=512,
        num_layers=6,
        num_heads=6,
        num_kv_heads=2,
        head_dim=32,
        rope_theta=500000.0,
        rope_scaling=None,
        norm_eps=1e-5,
        tied_embeddings=True,
        context_length=512,
    ),
    data=DataConfig(
        tokenizer="runs/real_text/tokenizer.model",
        prepared="runs/real_text/prepared",
        sequence_length=512,
        almr=0.0,
        original=(CorpusConfig("en", f"{CORPUS}/en/en.train-*.jsonl.gz"),),
        heldout=(
            CorpusConfig("zh", f"{CORPUS}/zh/zh.valid.jsonl.gz"),
            CorpusConfig("en", f"{CORPUS}/en/en.valid.jsonl.gz"),
        ),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=2e-3, warmup_steps=50),
    num_steps=700,
    global_batch_size=8,
    compute=ComputeConfig(dtype="float32", remat="none"),
    checkpoint=CheckpointConfig(every_steps=100, keep=1),
    evaluation=EvaluationConfig(
        every_steps=350, early_evaluations=False, documents=24, batch_size=16
    ),
    log_every_steps=10,
)
