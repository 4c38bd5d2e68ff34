"""Another language pair: Spanish on Llama-3 8B; only a name and the sources of the text change.

Given the `results.csv` of this sweep and of `sweep_8b`, `fit_law` reports whether one optimum fits
both pairs (docs/guide/another_language.md).
"""

from dataclasses import replace

from configs.sweep_8b import config as sweep
from llama_cpt.config.schema import CorpusConfig

data = sweep.train.data
heldout = (CorpusConfig("es", "data/heldout/es.jsonl.gz"), *data.heldout[1:])
spanish = replace(data, additional=(CorpusConfig("es", "data/es/*.jsonl.gz"),), heldout=heldout)

config = replace(
    sweep,
    output="runs/sweep_spanish_8b",
    pair="en+es",
    train=replace(sweep.train, data=spanish),
)
