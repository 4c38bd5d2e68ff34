"""DPO of the ``sft_70b`` model with the recipe of ``dpo_8b``."""

from dataclasses import replace

from configs.llama3.dpo_8b import config as dpo
from configs.llama3.sft_70b import config as sft
from llama_cpt.config.schema import OptimizerConfig

config = replace(
    sft,
    output="runs/dpo_70b",
    init_from=sft.output,
    data=replace(dpo.data, tokenizer=sft.data.tokenizer, sequence_length=sft.data.sequence_length),
    objective=dpo.objective,
    optimizer=OptimizerConfig(peak_learning_rate=5e-7, warmup_steps=20, weight_decay=0.0),
    num_steps=dpo.num_steps,
)
