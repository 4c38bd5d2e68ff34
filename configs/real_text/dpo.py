"""DPO of the ``sft.py`` model on Chinese and English pairs, which are truncated to fit in a row."""

from dataclasses import replace

from configs.real_text.base import DATA
from configs.real_text.sft import config as sft
from llama_cpt.config.schema import CorpusConfig, OptimizerConfig, PreferenceConfig

config = replace(
    sft,
    output="runs/real_text/dpo",
    init_from=sft.output,
    data=replace(
        sft.data,
        prepared="runs/real_text/prepared_dpo",
        additional=(CorpusConfig("dpo_zh", f"{DATA}/dpo/llama_factory/dpo_zh_demo.json.gz"),),
        original=(CorpusConfig("dpo_en", f"{DATA}/dpo/llama_factory/dpo_en_demo.json.gz"),),
    ),
    objective=PreferenceConfig(loss="sigmoid", beta=0.1, nll_weight=0.2),
    optimizer=OptimizerConfig(peak_learning_rate=5e-5, warmup_steps=5),
    num_steps=40,
    log_every_steps=5,
    seed=3,
)
