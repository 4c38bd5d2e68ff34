"""SFT of the ``cpt.py`` model on Chinese and English instructions, half of the tokens each."""

from dataclasses import replace

from configs.real_model.cpt import DATA
from configs.real_model.cpt import config as cpt
from llama_cpt.config.schema import ChatConfig, CorpusConfig, OptimizerConfig

config = replace(
    cpt,
    output="runs/real_model/sft",
    init_from=cpt.output,
    data=replace(
        cpt.data,
        chat=ChatConfig(too_long="truncate_end"),
        document_tokens=None,
        bad_documents="skip",
        prepared="runs/real_model/prepared_sft",
        almr=0.5,
        additional=(CorpusConfig("alpaca_zh", f"{DATA}/sft/llama_factory/alpaca_zh_demo.json.gz"),),
        original=(CorpusConfig("alpaca_en", f"{DATA}/sft/llama_factory/alpaca_en_demo.json.gz"),),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=1e-4, warmup_steps=8),
)
