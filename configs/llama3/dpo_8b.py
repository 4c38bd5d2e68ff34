"""DPO of the ``sft_8b`` model with the loss of Llama 3 (arXiv 2407.21783, section 4.1.4).

The loss has beta 0.1, adds the NLL of the chosen answer with weight 0.2, and masks header and end
tokens. The learning rate 1e-6 is common for full fine-tuning; Llama 3 used 1e-5.
"""

from dataclasses import replace

from configs.llama3.sft_8b import config as sft
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
