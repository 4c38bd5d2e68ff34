"""Continual pre-training of Llama-3 8B on Chinese and replayed English.

Weights and tokenizer come from
`python -m llama_cpt.convert from-hf meta-llama/Meta-Llama-3-8B weights/llama3_8b`.
Change the sources to your own corpora. Tune the ALMR and the learning rate on your data: ALMR 0.33
is from arXiv 2409.06624, and 2e-5 is a common learning rate for this model size.
"""

from configs.llama3.models import LLAMA3_8B
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
    # A step takes about 25 s on 16 v5p chips, so a lost host costs at most about 40 minutes.
    checkpoint=CheckpointConfig(every_steps=100, keep=3),
    evaluation=EvaluationConfig(every_steps=500, documents=256, batch_size=256),
)
