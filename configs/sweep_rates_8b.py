"""ALMR 0.25, 0.33 and 0.40 at half, once and twice the optimal learning rate of the law.

The law is written by `python -m llama_cpt.fit_law runs/sweep_8b/results.csv --output
runs/sweep_8b/law`.
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
