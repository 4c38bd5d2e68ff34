"""The config section for low-rank adapters (LoRA)."""

from dataclasses import dataclass, field

from llama_cpt.config.fields import (
    ConfigSection,
    did_you_mean,
    option,
    require_above_zero,
    require_at_least,
    traits,
)
from llama_cpt.runtime.errors import UserError

LORA_TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
"""Names of the weight matrices of a layer that can have adapters."""


@dataclass(frozen=True)
class LoraConfig(ConfigSection):
    """Options of low-rank adapters on frozen weights (LoRA, arXiv 2106.09685)."""

    rank: int = field(metadata=traits(on_resume="never"))
    alpha: float
    """Scale of the adapters: the output of the adapters is multiplied by ``alpha / rank``."""
    targets: tuple[str, ...] = option(LORA_TARGETS, on_resume="never")
    """Names of the weight matrices of each layer that have adapters."""

    @property
    def scale(self) -> float:
        """The factor ``alpha / rank`` by which the output of the adapters is multiplied."""
        return self.alpha / self.rank

    def __post_init__(self) -> None:
        """Validate ``rank``, ``alpha`` and ``targets``."""
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
