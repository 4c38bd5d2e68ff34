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
    """Load a model onto ``mesh`` as a decoder that computes in ``dtype``.

    ``source`` is a path or name that ``open_source`` accepts.
    """
    # Prompts are padded to buckets. A kernel that supports the smallest bucket supports all others.
    supported = jax.default_backend() == "tpu" and not refusal(MIN_BUCKET, config.head_dim)
    attention = "pallas" if supported else "reference"
    abstract = abstract_llama(config, compute_dtype=dtype, attention=attention)
    return make_decoder(open_source(source).load(abstract, mesh), mesh)
