"""The sweep of the paper's size: Llama-3 8B, five ratios at four learning rates, two budgets.

Each point trains 2.1 billion tokens at a constant rate and decays; the larger budget goes on from
there to 4.2 billion. `python -m llama_cpt.sweep configs/sweep_8b.py --dry-run` prices it, `--budget
2000` proposes what 2,000 chip-hours pay for. Ranges are for measurement to correct: the law refuses
an optimum on their edge.
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
