"""The CPT stage of the demo: training on Chinese at ALMR 0.33 with replay of English.

The demo also runs this config without replay, with the options ``--data.almr 1.0 --output
runs/demo/almr_1.0``.
"""

from dataclasses import replace

from configs.demo.base import FOLDER
from configs.demo.base import config as base
from llama_cpt.config.schema import CorpusConfig, EvaluationConfig, OptimizerConfig

config = replace(
    base,
    output=f"{FOLDER}/almr_0.33",
    init_from=base.output,
    data=replace(
        base.data,
        almr=0.33,
        additional=(CorpusConfig("zh", f"{FOLDER}/world/zh.train.jsonl"),),
    ),
    optimizer=OptimizerConfig(peak_learning_rate=3e-3, warmup_steps=40),
    num_steps=600,
    evaluation=EvaluationConfig(every_steps=60, documents=50, batch_size=16),
    seed=1,
)
