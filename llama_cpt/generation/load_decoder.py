"""Weights from wherever they are, laid out for generation."""

import jax
from jax.sharding import Mesh

from llama_cpt.config.schema import ModelConfig
from llama_cpt.generation.decoder import Decoder, make_decoder
from llama_cpt.generation.generate import MIN_BUCKET
from llama_cpt.model.llama import abstract_llama
from llama_cpt.weights.source import load_parameters
from pallas_kernels.flash_attention import refusal


def load_decoder(source: str, config: ModelConfig, mesh: Mesh, dtype: str) -> Decoder:
    """The model in ``source`` (as in ``load_parameters``) on ``mesh``, computed in ``dtype``."""
    # Prompts are read in buckets, each of which the kernel takes where it takes the shortest.
    takes = jax.default_backend() == "tpu" and not refusal(MIN_BUCKET, config.head_dim)
    attention = "pallas" if takes else "reference"
    abstract = abstract_llama(config, compute_dtype=dtype, attention=attention)
    return make_decoder(load_parameters(source, abstract, mesh), mesh)
