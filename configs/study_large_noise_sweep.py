"""Three cells of the large size of the study with another seed."""

from dataclasses import replace

from configs.study import FOLDER
from configs.study_large_sweep import COPIED, NAMED, TAKEN
from configs.study_large_sweep import config as large_sweep
from llama_cpt.config.sweep import AxisConfig

config = replace(
    large_sweep,
    output=f"{FOLDER}/large_noise",
    axes=(AxisConfig("seed", (1,)),),
    cells=(NAMED, COPIED, TAKEN),
)
