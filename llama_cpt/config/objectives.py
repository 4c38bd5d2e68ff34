"""Config sections of the training objectives: next-token prediction and preferences."""

from dataclasses import dataclass
from typing import Literal

from llama_cpt.config.fields import (
    ConfigSection,
    option,
    require_above_zero,
    require_at_least,
)
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class NextTokenConfig(ConfigSection):
    """The objective of CPT and SFT: cross-entropy of the next token at unmasked positions."""

    z_loss: float = 0.0
    """Weight of the mean squared log-normalizer (PaLM, arXiv 2204.02311, section 5)."""
    neftune_alpha: float = 0.0
    """Scale of the uniform noise on embeddings (NEFTune, arXiv 2310.05914); 0 adds none."""

    def __post_init__(self) -> None:
        """Validate the weights."""
        super().__post_init__()
        require_at_least(0, self, "objective", "z_loss", "neftune_alpha")


@dataclass(frozen=True)
class PreferenceConfig(ConfigSection):
    """The objective of DPO and related losses (equations: ``objectives/preference_losses.py``)."""

    loss: Literal["sigmoid", "robust", "ipo", "sigmoid_norm", "hinge", "simpo", "orpo", "kto"]
    """The loss; ``simpo`` and ``orpo`` need no reference, ``kto`` accepts unpaired answers."""
    beta: float = 0.1
    """Scale of the log-probability ratios in the loss."""
    label_smoothing: float = 0.0
    """Assumed share of wrong preferences (``sigmoid``: cDPO; ``robust``)."""
    gamma: float = 1.0
    """Target margin of ``simpo``."""
    nll_weight: float = 0.0
    """Weight of the chosen answer's mean NLL in nats per token, added to the loss (RPO); ``orpo``
    includes that term already."""
    mask_format_tokens: bool = False
    """Exclude the header and end tokens of answers from log-probabilities and NLL, as Llama 3 does
    (arXiv 2407.21783, section 4.1.4)."""
    desirable_weight: float = 1.0
    """Weight of good answers in ``kto``."""
    undesirable_weight: float = 1.0
    """Weight of bad answers in ``kto``."""
    chosen_logp_drop_warning: float = option(
        20.0, former_name="chosen_fall_bound", compiled=False, on_resume="warn"
    )
    """Nats by which ``logps/chosen`` may fall below the reference before a warning is printed."""

    def __post_init__(self) -> None:
        """Validate the weights and their combination with the loss."""
        super().__post_init__()
        require_above_zero("objective.beta", self.beta)
        require_above_zero("objective.chosen_logp_drop_warning", self.chosen_logp_drop_warning)
        require_at_least(0, self, "objective", "nll_weight", "gamma")
        require_at_least(0, self, "objective", "desirable_weight", "undesirable_weight")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"objective.label_smoothing={self.label_smoothing} must be in [0, 0.5)."
            )
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise UserError(
                f"objective.label_smoothing={self.label_smoothing} must be 0: only "
                f"objective.loss=sigmoid and robust use it, not {self.loss}."
            )
        if self.nll_weight and self.loss in ("orpo", "kto"):
            reason = "includes that term" if self.loss == "orpo" else "has no chosen answers"
            raise UserError(
                f"objective.nll_weight={self.nll_weight} must be 0: objective.loss={self.loss} "
                f"{reason}."
            )
