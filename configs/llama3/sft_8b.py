"""SFT of the ``cpt_8b`` model on Chinese and English conversations at ALMR 0.5.

docs/guide/chat.md lists the formats of conversations. Train for one to three epochs. The learning
rate 2e-5 is common for SFT and the default of TRL. A batch of 32 rows of 8,192 tokens contains
about 1,000 short conversations.
"""

from dataclasses import replace

from configs.llama3.cpt_8b import config as cpt
from llama_cpt.config.schema import ChatConfig, CheckpointConfig, CorpusConfig, OptimizerConfig

config = replace(
    cpt,
    output="runs/sft_8b",
    init_from=cpt.output,
    data=replace(
        cpt.data,
        chat=ChatConfig(),
        prepared="data/prepared_sft",
        sequence_length=8192,
        almr=0.5,
        additional=(CorpusConfig("zh", "data/sft/zh/*.json*"),),
        original=(CorpusConfig("en", "data/sft/en/*.json*"),),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=2e-5, warmup_steps=30, weight_decay=0.0),
    num_steps=1000,
    global_batch_size=32,
    checkpoint=CheckpointConfig(every_steps=250, keep=2),
    evaluation=replace(cpt.evaluation, every_steps=250, batch_size=32),
)
