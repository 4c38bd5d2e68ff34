"""Continual pre-training of the small English Llama on Chinese at the ALMR of arXiv 2409.06624."""

from dataclasses import replace

from configs.real_text.base import CORPUS
from configs.real_text.base import config as base
from llama_cpt.config.schema import CorpusConfig, EvaluationConfig, OptimizerConfig

config = replace(
    base,
    output="runs/real_text/almr_0.33",
    init_from="runs/real_text/base",
    data=replace(
        base.data,
        almr=0.33,
        additional=(CorpusConfig("zh", f"{CORPUS}/zh/zh.train-*.jsonl.gz"),),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=20),
    num_steps=300,
    evaluation=EvaluationConfig(every_steps=100, documents=24, batch_size=16),
)
