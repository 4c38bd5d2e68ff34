"""Chinese on the small English base of the study: five ratios at four learning rates."""

from dataclasses import replace

from configs.study import CPT, FOLDER, small
from llama_cpt.config.sweep import AxisConfig, SweepConfig

config = SweepConfig(
    output=f"{FOLDER}/small",
    train=replace(CPT, init_from=small.output, model=small.model),
    pair="en+zh",
    axes=(
        AxisConfig("data.almr", (0.15, 0.3, 0.5, 0.7, 0.85)),
        AxisConfig("optimizer.peak_learning_rate", (2e-3, 5e-3, 1.2e-2, 3e-2)),
    ),
)
