"""SFT of the ``cpt_70b`` model with the recipe of ``sft_8b``."""

from dataclasses import replace

from configs.llama3.cpt_70b import config as cpt
from configs.llama3.sft_8b import config as sft
from llama_cpt.config.schema import OptimizerConfig

config = replace(
    sft,
    output="runs/sft_70b",
    model=cpt.model,
    init_from=cpt.output,
    data=replace(sft.data, tokenizer=cpt.data.tokenizer),
    mesh=cpt.mesh,
    compute=cpt.compute,
    global_batch_size=128,
    microbatch_size=cpt.microbatch_size,
    optimizer=OptimizerConfig(peak_learning_rate=1e-5, warmup_steps=30, weight_decay=0.0),
    evaluation=replace(sft.evaluation, batch_size=128),
)
