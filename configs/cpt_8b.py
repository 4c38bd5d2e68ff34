"""Continual pre-training of Llama-3 8B on Chinese and replayed English.

Weights and tokenizer come from
`python -m llama_cpt.convert from-hf meta-llama/Meta-Llama-3-8B weights/llama3_8b`.
Change the sources to your own corpora. Ratio and rate are for measurement to choose: 0.33 is the
paper's ratio (arXiv 2409.06624), 2e-5 a common rate for this size; neither knows your data.
"""

from configs.models import LLAMA3_8B
from llama_cpt.config.schema import (
    CheckpointConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainConfig,
)

config = TrainConfig(
    output="runs/cpt_8b",
    init_from="weights/llama3_8b",
    model=LLAMA3_8B,
    data=DataConfig(
        tokenizer="weights/llama3_8b",
        prepared="data/prepared",
        sequence_length=8192,
        almr=0.33,
        additional=(CorpusConfig("zh", "data/zh/*.jsonl.gz"),),
        original=(CorpusConfig("en", "data/en/*.jsonl.gz"),),
        heldout=(
            CorpusConfig("zh", "data/heldout/zh.jsonl.gz"),
            CorpusConfig("en", "data/heldout/en.jsonl.gz"),
        ),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=2e-5, warmup_steps=200),
    num_steps=12_000,
    global_batch_size=256,
    # Of some 25 s each on 16 chips of v5p: what a lost host may cost.
    checkpoint=CheckpointConfig(every_steps=100, keep=3),
    evaluation=EvaluationConfig(every_steps=500, documents=256, batch_size=256),
)
