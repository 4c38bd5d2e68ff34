"""Weights from wherever they are, laid out for generation."""

import jax
from jax.sharding import Mesh

from llama_cpt.config import ModelConfig
from llama_cpt.model.attention import resolve_attention
from llama_cpt.model.decoder import Decoder, make_decoder
from llama_cpt.model.generate import bucket
from llama_cpt.model.llama import abstract_llama
from llama_cpt.model.load import load_parameters


def load_decoder(source: str, config: ModelConfig, mesh: Mesh, dtype: str) -> Decoder:
    """The model in ``source`` (as in ``load_parameters``) on ``mesh``, computed in ``dtype``."""
    length, backend = bucket(config.context_length), jax.default_backend()
    attention = resolve_attention("auto", backend, length, config.head_dim, dtype)
    abstract = abstract_llama(config, compute_dtype=dtype, attention=attention)
    return make_decoder(load_parameters(source, abstract, mesh), mesh)
