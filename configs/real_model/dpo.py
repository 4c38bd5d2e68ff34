"""DPO of the ``sft.py`` model on Chinese and English pairs, half of the tokens each."""

from dataclasses import replace

from configs.real_model.cpt import DATA
from configs.real_model.sft import config as sft
from llama_cpt.config.schema import CorpusConfig, OptimizerConfig, PreferenceConfig

config = replace(
    sft,
    output="runs/real_model/dpo",
    init_from=sft.output,
    data=replace(
        sft.data,
        prepared="runs/real_model/prepared_dpo",
        additional=(CorpusConfig("dpo_zh", f"{DATA}/dpo/llama_factory/dpo_zh_demo.json.gz"),),
        original=(CorpusConfig("dpo_en", f"{DATA}/dpo/llama_factory/dpo_en_demo.json.gz"),),
    ),
    objective=PreferenceConfig(loss="sigmoid", beta=0.1),
    optimizer=OptimizerConfig(peak_learning_rate=5e-6, warmup_steps=4),
    num_steps=25,
)
