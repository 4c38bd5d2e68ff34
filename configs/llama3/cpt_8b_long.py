"""Continual pre-training of Llama-3.1 8B on rows of 131,072 tokens, with eight chips per row.

A v5p slice of 4 x 4 x 4 chips processes eight rows at a time. The context axis of the mesh shards
each row (docs/guide/meshes.md).
"""

from dataclasses import replace

from configs.llama3.cpt_8b import config as cpt_8b
from configs.llama3.models import LLAMA31_8B
from llama_cpt.config.schema import MeshConfig

config = replace(
    cpt_8b,
    output="runs/cpt_8b_long",
    init_from="weights/llama31_8b",
    model=LLAMA31_8B,
    data=replace(
        cpt_8b.data,
        tokenizer="weights/llama31_8b",
        prepared="data/prepared_long",
        sequence_length=131_072,
    ),
    mesh=MeshConfig(fsdp=-1, context=8),
    global_batch_size=16,
    microbatch_size=8,
    evaluation=replace(cpt_8b.evaluation, batch_size=8),
)
