"""Continual pre-training of any Llama model in Hugging Face format, with a Chinese corpus.

The model is in the folder MODEL, and the text is in the folder LLAMA_CPT_DATA (default:
../shared/data). docs/guide/real_model.md starts from this config. The number of steps is for a
model of 135 million parameters on a CPU.
"""

import os

from llama_cpt.config.schema import (
    CheckpointConfig,
    ComputeConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainConfig,
)

MODEL = "weights/smollm2"
DATA = os.environ.get("LLAMA_CPT_DATA", "../shared/data")
CORPUS = os.path.join(DATA, "corpus")

config = TrainConfig(
    output="runs/real_model/cpt",
    init_from=MODEL,  # The model's architecture is read from this folder.
    data=DataConfig(
        tokenizer=MODEL,
        prepared="runs/real_model/prepared",
        sequence_length=256,
        almr=0.33,
        additional=(CorpusConfig("zh", f"{CORPUS}/zh/zh.train-00000.jsonl.gz"),),
        original=(CorpusConfig("en", f"{CORPUS}/en/en.train-00000.jsonl.gz"),),
        heldout=(
            CorpusConfig("zh", f"{CORPUS}/zh/zh.valid.jsonl.gz"),
            CorpusConfig("en", f"{CORPUS}/en/en.valid.jsonl.gz"),
        ),
        # The tokenizer of a chat model begins and ends documents with its turn markers. SmolLM2
        # was pre-trained with this token between documents.
        document_tokens=("", "<|endoftext|>"),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=3e-4, warmup_steps=8),
    num_steps=50,
    global_batch_size=4,
    microbatch_size=2,
    compute=ComputeConfig(dtype="float32", remat="minimal"),
    checkpoint=CheckpointConfig(every_steps=10, keep=1),
    # The number of held-out documents is computed, so that they take at most 5 % of the tokens.
    evaluation=EvaluationConfig(every_steps=50, early_evaluations=False, batch_size=4),
    log_every_steps=5,
)
