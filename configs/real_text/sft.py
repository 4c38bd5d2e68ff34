"""SFT of the ``cpt.py`` model on Chinese and English instructions and Chinese dialogues.

Half of the rows are Chinese. Two fifths of the Chinese rows are emotional-support dialogues.
"""

from dataclasses import replace

from configs.real_text.base import DATA
from configs.real_text.cpt import config as cpt
from llama_cpt.config.schema import ChatConfig, CorpusConfig, OptimizerConfig

config = replace(
    cpt,
    output="runs/real_text/sft",
    init_from=cpt.output,
    data=replace(
        cpt.data,
        chat=ChatConfig(too_long="truncate_end"),
        bad_documents="skip",
        prepared="runs/real_text/prepared_sft",
        almr=0.5,
        additional=(
            CorpusConfig("alpaca_zh", f"{DATA}/sft/llama_factory/alpaca_zh_demo.json.gz", 1.0),
            CorpusConfig("ruozhiba", f"{DATA}/sft/ruozhiba/ruozhiba_qa2449_gpt4o.json.gz", 2.0),
            CorpusConfig("smile", f"{DATA}/sft/smile_zh_support/smile_sample_2000.jsonl.gz", 2.0),
        ),
        original=(CorpusConfig("alpaca_en", f"{DATA}/sft/llama_factory/alpaca_en_demo.json.gz"),),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=5e-4, warmup_steps=20),
    num_steps=200,
    seed=2,
)
