"""The study's large size, held out: the cells that docs/study/law.json is judged by.

What the law names, what the small size's best cell would be, the paper's ratio at that rate, and
their neighbours; the three again with another seed.
"""

from dataclasses import replace

from configs.study import FOLDER, large
from configs.study_small_sweep import config as small_sweep
from llama_cpt.sweep_config import SizeConfig

NAMED = (0.5, 3e-3)
COPIED = (0.575, 4.6e-3)
TAKEN = (0.33, COPIED[1])
NEIGHBOURS = (
    (NAMED[0] + 0.12, NAMED[1]),
    (NAMED[0] - 0.12, NAMED[1]),
    (NAMED[0], NAMED[1] * 2),
    (NAMED[0], NAMED[1] / 2),
)

config = replace(
    small_sweep,
    output=f"{FOLDER}/large",
    sizes=(SizeConfig("large", large.model, large.output),),
    axes=(),
    cells=(NAMED, COPIED, TAKEN, *NEIGHBOURS),
)
