"""ALMR 0.33 in three orders at equal tokens: interleaved by rows, in blocks, in rising stages.

A block has one language, and a pair of blocks has 100 steps; the stages rise from 0.13 over 0.33
to 0.53. Every order trains on exactly the same number of additional rows.
"""

from dataclasses import replace

from configs.sweep_8b import config as sweep
from llama_cpt.config.sweep import AxisConfig

STEPS = 1200
blocks = tuple(
    stage for start in range(0, STEPS, 100) for stage in ((start, 0.0), (start + 67, 1.0))
)
stages = ((0, 0.13), (STEPS // 3, 0.33), (2 * STEPS // 3, 0.53))

config = replace(
    sweep,
    output="runs/sweep_order_8b",
    train=replace(sweep.train, num_steps=STEPS),
    axes=(
        AxisConfig("data.almr", (0.33, blocks, stages), names=("interleaved", "block", "staged")),
        AxisConfig("seed", (0, 1)),
    ),
    token_budgets=(),
)
