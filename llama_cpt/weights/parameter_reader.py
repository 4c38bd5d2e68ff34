"""The interface for reading a model's weights one parameter at a time."""

from typing import Protocol

import jax

from llama_cpt.config.schema import ModelConfig


class ParameterReader(Protocol):
    """A reader of single parameters, for models that do not fit into host memory."""

    config: ModelConfig
    """The architecture of the model."""

    def parameter(self, path: str) -> jax.Array:
        """Return the float32 array of a parameter, such as ``layers/query``, on the host's CPU."""
        ...
