"""ALMR 0.25, 0.33 and 0.40 at the config's learning rate: the ratios around the paper's."""

from dataclasses import replace

from configs.sweep_8b import config as sweep
from llama_cpt.config.sweep import AxisConfig

config = replace(
    sweep,
    output="runs/sweep_ratios_8b",
    axes=(AxisConfig("data.almr", (0.25, 0.33, 0.4)),),
)
