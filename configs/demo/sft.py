"""The SFT stage of the demo, on Chinese and English conversations about the generated world.

Documents of both languages are in the mixture, so that the model keeps its ordinary text. English
needs more of them than Chinese (docs/guide/pipeline.md).
"""

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
        almr=0.5,
        additional=(
            CorpusConfig("zh", f"{FOLDER}/world/zh.chats.jsonl"),
            replace(cpt.data.additional[0], name="zh_text", kind="documents", weight=0.15),
        ),
        original=(
            CorpusConfig("en", f"{FOLDER}/world/en.chats.jsonl"),
            replace(cpt.data.original[0], name="en_text", kind="documents", weight=0.75),
        ),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=20),
    num_steps=1200,
    seed=2,
)
