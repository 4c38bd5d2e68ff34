"""Continual pre-training of Llama-3.2 1B on one host, with the recipe of ``cpt_8b``."""

from dataclasses import replace

from configs.llama3.cpt_8b import config as cpt_8b
from configs.llama3.models import LLAMA32_1B

config = replace(
    cpt_8b,
    output="runs/cpt_1b",
    init_from="weights/llama32_1b",
    model=LLAMA32_1B,
    data=replace(cpt_8b.data, tokenizer="weights/llama32_1b", prepared="data/prepared_1b"),
    global_batch_size=64,
    microbatch_size=8,
    evaluation=replace(cpt_8b.evaluation, batch_size=8),
)
