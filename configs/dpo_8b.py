"""DPO of the model that ``sft_8b`` made, as Llama 3 did it (arXiv 2407.21783, section 4.1.4).

beta 0.1, NLL of the chosen answer at 0.2, header and end tokens masked. 1e-6 is a common rate
for whole weights; Llama 3's is 1e-5.
"""

from dataclasses import replace

from configs.sft_8b import config as sft
from llama_cpt.config.schema import CorpusConfig, OptimizerConfig, PreferenceConfig

config = replace(
    sft,
    output="runs/dpo_8b",
    init_from=sft.output,
    data=replace(
        sft.data,
        prepared="data/prepared_dpo",
        additional=(CorpusConfig("zh", "data/dpo/zh/*.json*"),),
        original=(CorpusConfig("en", "data/dpo/en/*.json*"),),
    ),
    objective=PreferenceConfig(loss="sigmoid", beta=0.1, nll_weight=0.2, mask_format_tokens=True),
    optimizer=OptimizerConfig(peak_learning_rate=1e-6, warmup_steps=20, weight_decay=0.0),
    num_steps=300,
)
