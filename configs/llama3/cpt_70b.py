"""Continual pre-training of Llama-3 70B with the ALMR of ``cpt_8b`` and a lower learning rate."""

from dataclasses import replace

from configs.llama3.cpt_8b import config as cpt_8b
from configs.llama3.models import LLAMA3_70B

config = replace(
    cpt_8b,
    output="runs/cpt_70b",
    init_from="weights/llama3_70b",
    model=LLAMA3_70B,
    data=replace(cpt_8b.data, tokenizer="weights/llama3_70b"),
    optimizer=replace(cpt_8b.optimizer, peak_learning_rate=1e-5),
)
