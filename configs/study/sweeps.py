"""Sweeps of the study in `docs/notes/study.md`: CPT of English models of three sizes on Chinese.

The names of the sweeps are `configs/study/sweeps.py:small`, `:noise`, `:middle`, `:large` and
`:large_noise`.
"""

from dataclasses import replace

from configs.study import base_models
from configs.study.base_models import CPT, FOLDER
from llama_cpt.config.sweep import AxisConfig, SizeConfig, SweepConfig

# Five ALMRs at four learning rates.
small = SweepConfig(
    output=f"{FOLDER}/small",
    train=replace(CPT, init_from=base_models.small.output, model=base_models.small.model),
    pair="en+zh",
    axes=(
        AxisConfig("data.almr", (0.15, 0.3, 0.5, 0.7, 0.85)),
        AxisConfig("optimizer.peak_learning_rate", (2e-3, 5e-3, 1.2e-2, 3e-2)),
    ),
)

# Three settings of the small sweep with a second seed, to measure the noise between runs.
noise = replace(
    small,
    output=f"{FOLDER}/noise",
    axes=(AxisConfig("seed", (1,)),),
    cells=((0.3, 1.2e-2), (0.5, 5e-3), (0.7, 2e-3)),
)

middle = replace(
    small,
    output=f"{FOLDER}/middle",
    sizes=(SizeConfig("middle", base_models.middle.model, base_models.middle.output),),
    axes=(
        AxisConfig("data.almr", (0.3, 0.5, 0.7)),
        AxisConfig("optimizer.peak_learning_rate", (2e-3, 5e-3, 1.2e-2)),
    ),
)

# The law in docs/notes/study/law.json was fitted without the large size, which tests the law.
PREDICTED = (0.585, 2.6e-3)
BEST_OF_SMALL = (0.5, 5e-3)
PAPER_RATIO = (0.33, BEST_OF_SMALL[1])
NEIGHBORS = ((0.465, 2.6e-3), (0.705, 2.6e-3), (0.585, 4.7e-3), (0.585, 1.45e-3))

large = replace(
    small,
    output=f"{FOLDER}/large",
    sizes=(SizeConfig("large", base_models.large.model, base_models.large.output),),
    axes=(),
    cells=(PREDICTED, BEST_OF_SMALL, PAPER_RATIO, *NEIGHBORS),
)

large_noise = replace(
    large,
    output=f"{FOLDER}/large_noise",
    axes=(AxisConfig("seed", (1,)),),
    cells=(PREDICTED, BEST_OF_SMALL, PAPER_RATIO),
)
