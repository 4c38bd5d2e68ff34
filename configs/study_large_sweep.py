"""The held-out large size of the study: cells that test docs/notes/study/law.json.

The cells are the prediction of the law, the best cell of the small size, the paper's ratio at that
rate, and neighbors of the prediction. `study_large_noise_sweep.py` repeats the first three with
another seed.
"""

from dataclasses import replace

from configs.study import FOLDER, large
from configs.study_small_sweep import config as small_sweep
from llama_cpt.config.sweep import SizeConfig

NAMED = (0.585, 2.6e-3)
COPIED = (0.5, 5e-3)
TAKEN = (0.33, COPIED[1])
NEIGHBORS = ((0.465, 2.6e-3), (0.705, 2.6e-3), (0.585, 4.7e-3), (0.585, 1.45e-3))

config = replace(
    small_sweep,
    output=f"{FOLDER}/large",
    sizes=(SizeConfig("large", large.model, large.output),),
    axes=(),
    cells=(NAMED, COPIED, TAKEN, *NEIGHBORS),
)
