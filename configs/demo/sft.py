"""The SFT stage of the demo, on Chinese and English conversations about the generated world."""

from dataclasses import replace

from configs.demo.base import FOLDER
from configs.demo.cpt import config as cpt
from llama_cpt.config.schema import ChatConfig, CorpusConfig, OptimizerConfig

config = replace(
    cpt,
    output=f"{FOLDER}/sft",
    init_from=cpt.output,
    data=replace(
        cpt.data,
        chat=ChatConfig(),
        prepared=f"{FOLDER}/prepared_sft",
        almr=0.6,
        additional=(CorpusConfig("zh", f"{FOLDER}/world/zh.chats.jsonl"),),
        original=(CorpusConfig("en", f"{FOLDER}/world/en.chats.jsonl"),),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=20),
    num_steps=600,
    seed=2,
)
