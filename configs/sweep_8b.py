"""A sweep at the paper's size: Llama-3 8B, five ratios at four learning rates, two budgets.

Each point trains on 2.1 billion tokens at a constant rate and decays; the larger budget continues
from before the decay to 4.2 billion. `python -m llama_cpt.sweep configs/sweep_8b.py --dry-run`
prints the cost, and `--budget 2000` prints a grid for 2,000 chip-hours. Extend the ranges if the
optimum is on an edge, where the law rejects it.
"""

from dataclasses import replace

from configs.cpt_8b import config as cpt
from llama_cpt.config.schema import EvaluationConfig, OptimizerConfig
from llama_cpt.config.sweep import AxisConfig, SweepConfig

BUDGET = 1000 * cpt.global_batch_size * cpt.data.sequence_length

config = SweepConfig(
    output="runs/sweep_8b",
    train=replace(
        cpt,
        optimizer=OptimizerConfig(
            peak_learning_rate=2e-5, schedule="wsd", warmup_steps=100, decay_steps=200
        ),
        evaluation=EvaluationConfig(every_steps=250, documents=256, batch_size=256),
    ),
    pair="en+zh",
    axes=(
        AxisConfig("data.almr", (0.1, 0.2, 0.33, 0.5, 0.7)),
        AxisConfig("optimizer.peak_learning_rate", (5e-6, 1e-5, 2e-5, 4e-5)),
    ),
    token_budgets=(BUDGET, 2 * BUDGET),
)
