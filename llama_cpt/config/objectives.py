"""Config sections for the training objectives: next-token prediction and preference losses."""

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
    """The objective of CPT and SFT: next-token cross-entropy over tokens that count in the loss."""

    z_loss: float = 0.0
    """Weight of the mean square of log(softmax normalizer) (PaLM, arXiv 2204.02311, section 5)."""
    neftune_alpha: float = 0.0
    """Scale of uniform noise added to the embeddings (NEFTune, arXiv 2310.05914); 0 means none."""

    def __post_init__(self) -> None:
        """Validate that the values are not negative."""
        super().__post_init__()
        require_at_least(0, self, "objective", "z_loss", "neftune_alpha")


@dataclass(frozen=True)
class PreferenceConfig(ConfigSection):
    """Options of DPO and related losses; see ``objectives/preference_losses.py`` for equations."""

    loss: Literal["sigmoid", "robust", "ipo", "sigmoid_norm", "hinge", "simpo", "orpo", "kto"]
    """Name of the loss. ``simpo`` and ``orpo`` need no reference model. ``kto`` trains on single
    answers that are rated good or bad; it also accepts pairs."""
    beta: float = 0.1
    """Scale of the log-probability ratios in the loss."""
    label_smoothing: float = 0.0
    """Assumed share of pairs with swapped labels. Only ``sigmoid`` and ``robust`` use this field;
    ``sigmoid`` with a value above 0 is cDPO."""
    gamma: float = 1.0
    """Target reward margin of ``simpo``."""
    nll_weight: float = 0.0
    """Weight of a term added to the loss as in RPO: the mean NLL of the chosen answer in nats per
    token. Must be 0 for ``orpo``, which already includes this term, and for ``kto``."""
    mask_format_tokens: bool = False
    """True to exclude header and end tokens of answers from log-probabilities and NLL, as in
    Llama 3 (arXiv 2407.21783, section 4.1.4)."""
    desirable_weight: float = 1.0
    """Weight in ``kto`` of answers that are rated good."""
    undesirable_weight: float = 1.0
    """Weight in ``kto`` of answers that are rated bad."""
    chosen_logp_drop_warning: float = option(
        20.0, former_name="chosen_fall_bound", compiled=False, on_resume="warn"
    )
    """Largest decrease of ``logps/chosen`` relative to the reference model, in nats. A larger
    decrease is logged as a warning."""

    def __post_init__(self) -> None:
        """Validate the values and their combination with ``loss``."""
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
