"""Sweeps of Llama-3 8B, the model of arXiv 2409.06624, over ALMRs and learning rates.

`config` has five ALMRs, four learning rates and two token budgets. Each trial of the smaller budget
trains on 2.1 billion tokens, at a constant learning rate that decays at the end. The trial of the
larger budget continues to 4.2 billion tokens from the state before that decay.

`python -m llama_cpt.sweep configs/llama3/sweep_8b.py --dry-run` prints the cost, and
`--budget 2000` prints a grid that costs 2,000 chip-hours. If the optimum is on the edge of the
grid, extend the ranges, because `fit_law` does not recommend an optimum on the edge.

The names of the other sweeps are `configs/llama3/sweep_8b.py:ratios`, `:rates`, `:order` and
`:spanish`.
"""

from dataclasses import replace

from configs.llama3.cpt_8b import config as cpt
from llama_cpt.config.schema import CorpusConfig, EvaluationConfig, OptimizerConfig
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

# ALMRs around 0.33, the ALMR of arXiv 2409.06624, at the learning rate of `cpt_8b`.
ratios = replace(
    config,
    output="runs/sweep_ratios_8b",
    axes=(AxisConfig("data.almr", (0.25, 0.33, 0.4)),),
)

# The ALMRs of `ratios` at 0.5, 1 and 2 times the law's optimal learning rate. `python -m
# llama_cpt.fit_law runs/sweep_8b/results.csv --output runs/sweep_8b/law` writes the law.
rates = replace(
    config,
    output="runs/sweep_rates_8b",
    axes=(*ratios.axes, AxisConfig("optimizer.peak_learning_rate", (0.5, 1.0, 2.0))),
    law="runs/sweep_8b/law/law.json",
)

# ALMR 0.33 in three orders with equal token budgets: rows interleaved, in blocks, and in stages of
# rising ALMR. A block has one language, and a pair of blocks has 100 steps. The stages have ALMR
# 0.13, 0.33 and 0.53. All orders train on exactly the same number of additional rows.
STEPS = 1200
blocks = tuple(
    stage for start in range(0, STEPS, 100) for stage in ((start, 0.0), (start + 67, 1.0))
)
stages = ((0, 0.13), (STEPS // 3, 0.33), (2 * STEPS // 3, 0.53))
order = replace(
    config,
    output="runs/sweep_order_8b",
    train=replace(config.train, num_steps=STEPS),
    axes=(
        AxisConfig("data.almr", (0.33, blocks, stages), names=("interleaved", "block", "staged")),
        AxisConfig("seed", (0, 1)),
    ),
    token_budgets=(),
)

# The sweep of a different language pair, which differs from `config` only in the name of the pair
# and in the text. Given the `results.csv` of this sweep and of `config`, `fit_law` reports whether
# one optimum fits both pairs (docs/guide/another_language.md).
heldout = (CorpusConfig("es", "data/heldout/es.jsonl.gz"), *cpt.data.heldout[1:])
spanish = replace(
    config,
    output="runs/sweep_spanish_8b",
    pair="en+es",
    train=replace(
        config.train,
        data=replace(
            cpt.data,
            additional=(CorpusConfig("es", "data/es/*.jsonl.gz"),),
            heldout=heldout,
        ),
    ),
)
