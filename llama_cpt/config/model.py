"""The architecture of a Llama model."""

from dataclasses import dataclass, field

from llama_cpt.config.fields import (
    ConfigSection,
    require_above_zero,
    require_at_least,
    traits,
)
from llama_cpt.config.hf_fields import read_hf_fields
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class RopeScaling(ConfigSection):
    """RoPE frequency scaling of Llama 3.1 (``rope_type: llama3`` in a Hugging Face config)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int


@dataclass(frozen=True)
class ModelConfig(ConfigSection):
    """The architecture of a Llama model, as in a Hugging Face ``config.json``.

    Fields that determine the shapes of the weights cannot change when a run resumes, because a
    checkpoint with different shapes cannot be restored.
    """

    vocab_size: int = field(metadata=traits(on_resume="never"))
    embed_dim: int = field(metadata=traits(on_resume="never"))
    mlp_dim: int = field(metadata=traits(on_resume="never"))
    num_layers: int = field(metadata=traits(on_resume="never"))
    num_heads: int = field(metadata=traits(on_resume="never"))
    num_kv_heads: int = field(metadata=traits(on_resume="never"))
    head_dim: int = field(metadata=traits(on_resume="never"))
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tied_embeddings: bool = field(metadata=traits(on_resume="never"))
    context_length: int
    """Maximum number of tokens per row that the model supports (``max_position_embeddings``)."""

    def __post_init__(self) -> None:
        """Validate the sizes, their divisibility and the constants."""
        super().__post_init__()
        sizes = ("vocab_size", "embed_dim", "mlp_dim", "num_layers", "num_heads", "num_kv_heads")
        require_at_least(1, self, "model", *sizes, "head_dim", "context_length")
        require_above_zero("model.rope_theta", self.rope_theta)
        require_above_zero("model.norm_eps", self.norm_eps)
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_heads={self.num_heads} must be a multiple of "
                f"model.num_kv_heads={self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim={self.head_dim} must be even; RoPE rotates pairs.")

    @classmethod
    def from_hf(cls, folder: str) -> "ModelConfig":
        """Return the architecture in ``config.json`` of a Hugging Face folder, for config files.

        ``folder`` is a local path or a ``gs://`` URL. Raises UserError if the architecture is not
        Llama, or if an unsupported field changes the computation.
        """
        path = f"{folder}/config.json"
        values = read_hf_fields(path)
        scaling = values.pop("rope_scaling")
        try:
            return cls(rope_scaling=RopeScaling(**scaling) if scaling else None, **values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
