"""Three cells of the small sweep of the study with another seed: the noise between runs."""

from dataclasses import replace

from configs.study import FOLDER
from configs.study_small_sweep import config as small_sweep
from llama_cpt.config.sweep import AxisConfig

config = replace(
    small_sweep,
    output=f"{FOLDER}/noise",
    axes=(AxisConfig("seed", (1,)),),
    cells=((0.3, 1.2e-2), (0.5, 5e-3), (0.7, 2e-3)),
)
