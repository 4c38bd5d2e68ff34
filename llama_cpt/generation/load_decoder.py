"""Loading of a model for generation, from a Hugging Face folder or a run folder."""

import jax
from jax.sharding import Mesh

from llama_cpt.config.schema import ModelConfig
from llama_cpt.generation.decoder import Decoder, make_decoder
from llama_cpt.generation.generate import MIN_BUCKET
from llama_cpt.model.llama import abstract_llama
from llama_cpt.weights.source import open_source
from pallas_kernels.flash_attention import refusal


def load_decoder(source: str, config: ModelConfig, mesh: Mesh, dtype: str) -> Decoder:
    """Return the model in ``source`` (see ``open_source``) on ``mesh``, computed in ``dtype``."""
    # Prompts are padded to buckets: if the kernel supports the shortest, it supports all of them.
    takes = jax.default_backend() == "tpu" and not refusal(MIN_BUCKET, config.head_dim)
    attention = "pallas" if takes else "reference"
    abstract = abstract_llama(config, compute_dtype=dtype, attention=attention)
    return make_decoder(open_source(source).load(abstract, mesh), mesh)
