"""For ALMR 0.25, 0.33 and 0.40: half, once and twice the learning rate that the law finds best.

`runs/sweep_8b/law` is what `python -m llama_cpt.fit_law runs/sweep_8b/results.csv --output
runs/sweep_8b/law` writes.
"""

from dataclasses import replace

from configs.sweep_8b import config as sweep
from llama_cpt.config.sweep import AxisConfig

config = replace(
    sweep,
    output="runs/sweep_rates_8b",
    axes=(
        AxisConfig("data.almr", (0.25, 0.33, 0.4)),
        AxisConfig("optimizer.peak_learning_rate", (0.5, 1.0, 2.0)),
    ),
    law="runs/sweep_8b/law/law.json",
)
