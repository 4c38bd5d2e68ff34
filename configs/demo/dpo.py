"""The DPO stage of the demo, on preference pairs about the customs of the generated world."""

from dataclasses import replace

from configs.demo.base import FOLDER
from configs.demo.sft import config as sft
from llama_cpt.config.schema import CorpusConfig, OptimizerConfig, PreferenceConfig

config = replace(
    sft,
    output=f"{FOLDER}/dpo",
    init_from=sft.output,
    data=replace(
        sft.data,
        prepared=f"{FOLDER}/prepared_dpo",
        almr=0.6,
        additional=(CorpusConfig("zh", f"{FOLDER}/world/zh.preferences.jsonl"),),
        original=(CorpusConfig("en", f"{FOLDER}/world/en.preferences.jsonl"),),
    ),
    objective=PreferenceConfig(loss="sigmoid", nll_weight=0.2),
    optimizer=OptimizerConfig(peak_learning_rate=2e-4, warmup_steps=10),
    num_steps=60,
    log_every_steps=10,
    seed=3,
)
