"""Chinese on the middle English base of the study: nine cells of the grid of the small base."""

from dataclasses import replace

from configs.study import FOLDER, middle
from configs.study_small_sweep import config as small_sweep
from llama_cpt.config.sweep import AxisConfig, SizeConfig

config = replace(
    small_sweep,
    output=f"{FOLDER}/middle",
    sizes=(SizeConfig("middle", middle.model, middle.output),),
    axes=(
        AxisConfig("data.almr", (0.3, 0.5, 0.7)),
        AxisConfig("optimizer.peak_learning_rate", (2e-3, 5e-3, 1.2e-2)),
    ),
)
