"""Another language pair: Spanish onto Llama-3 8B. What changes is a name and where its text lies.

With `results.csv` of this sweep beside that of `sweep_8b`, `fit_law` says whether one optimum
serves both pairs (docs/guide/another_language.md).
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
