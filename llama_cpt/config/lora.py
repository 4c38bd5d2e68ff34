"""The config section of low-rank adapters."""

from dataclasses import dataclass

from llama_cpt.config.fields import (
    ConfigSection,
    did_you_mean,
    option,
    require_above_zero,
    require_at_least,
)
from llama_cpt.runtime.errors import UserError

LORA_TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
"""Names of the matrices of a layer that can have adapters."""


@dataclass(frozen=True)
class LoraConfig(ConfigSection):
    """Low-rank adapters on frozen weights (LoRA, arXiv 2106.09685)."""

    rank: int = option(on_resume="never")
    alpha: float
    """Numerator of the adapters' scale, ``alpha / rank``."""
    targets: tuple[str, ...] = option(LORA_TARGETS, on_resume="never")
    """Matrices of every layer that have adapters."""

    @property
    def scale(self) -> float:
        """Factor of the adapters' output: ``alpha / rank``."""
        return self.alpha / self.rank

    def __post_init__(self) -> None:
        """Validate the rank, the scale and the targets."""
        super().__post_init__()
        require_at_least(1, self, "lora", "rank")
        require_above_zero("lora.alpha", self.alpha)
        for target in self.targets:
            if target not in LORA_TARGETS:
                raise UserError(
                    f"lora.targets: unknown {target!r}{did_you_mean(target, list(LORA_TARGETS))}"
                )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError(
                f"lora.targets={self.targets} must name at least one matrix, and each only once."
            )
