"""The interface of weights that are read one parameter at a time."""

from typing import Protocol

import jax

from llama_cpt.config.schema import ModelConfig


class ParameterReader(Protocol):
    """Weights read one parameter at a time, so that a model need not fit into host memory."""

    config: ModelConfig
    """The architecture of the model."""

    def parameter(self, path: str) -> jax.Array:
        """Return one float32 array of the model, such as ``layers/query``, on the host's CPU."""
        ...
