"""The base model of the demo: a tiny Llama 3 trained on English text."""

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

FOLDER = "runs/demo"

config = TrainConfig(
    output=f"{FOLDER}/base",
    model=ModelConfig(
        vocab_size=4096,
        embed_dim=128,
        mlp_dim=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        rope_theta=500000.0,
        rope_scaling=None,
        norm_eps=1e-5,
        tied_embeddings=True,
        context_length=512,
    ),
    data=DataConfig(
        tokenizer=f"{FOLDER}/tokenizer.model",
        prepared=f"{FOLDER}/prepared",
        sequence_length=256,
        almr=0.0,
        original=(CorpusConfig("en", f"{FOLDER}/world/en.train.jsonl"),),
        heldout=(
            CorpusConfig("zh", f"{FOLDER}/world/zh.heldout.jsonl"),
            CorpusConfig("en", f"{FOLDER}/world/en.heldout.jsonl"),
        ),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=5e-3, warmup_steps=40),
    num_steps=900,
    global_batch_size=4,
    compute=ComputeConfig(dtype="float32", remat="none"),
    checkpoint=CheckpointConfig(every_steps=150, keep=1),
    evaluation=EvaluationConfig(
        every_steps=300, early_evaluations=False, documents=50, batch_size=16
    ),
    log_every_steps=50,
)
