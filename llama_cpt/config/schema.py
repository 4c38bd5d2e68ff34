"""Every knob of a run, as frozen dataclasses, and the one way to read them.

A config is a Python file that defines ``config = TrainConfig(...)``, or the JSON that a run
writes beside its checkpoints. Architecture constants have no default: a forgotten ``rope_theta``
is an error, not another model.
"""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Literal

import tyro

from llama_cpt.config.fields import (
    ConfigSection,
    did_you_mean,
    option,
    require_above_zero,
    require_at_least,
    require_nonempty,
    require_share,
)
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class RopeScaling(ConfigSection):
    """Llama-3.1's frequency scaling (``rope_type: llama3`` in a Hugging Face config)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int


@dataclass(frozen=True)
class ModelConfig(ConfigSection):
    """The architecture: what a Hugging Face ``config.json`` says of a Llama."""

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tied_embeddings: bool
    context_length: int
    """The longest row that the model is made for (``max_position_embeddings``)."""

    def __post_init__(self) -> None:
        """Refuse shapes that no Llama has."""
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
            raise UserError(f"model.head_dim={self.head_dim} must be even: RoPE rotates pairs.")


@dataclass(frozen=True)
class ComputeConfig(ConfigSection):
    """How the model is computed; only the two types change what is computed, by their rounding."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations and matrix operands; parameters, loss and norms are float32."""
    remat: Literal["none", "minimal", "dots", "full", "offload"] = "full"
    """What the backward pass recomputes: ``none`` nothing, ``full`` all but each layer's input."""
    attention: Literal["auto", "pallas", "splash", "cudnn", "reference"] = "auto"
    """``auto`` is resolved once, at start, by backend, row length and ``dtype``, and printed."""
    loss_chunk_tokens: int = 2048
    """Tokens on one device whose logits exist at a time."""
    matmul_precision: Literal["bf16", "int8", "fp8"] = "bf16"
    """Operands of the layers' products: ``bf16`` in ``dtype``; ``int8`` and ``fp8`` quantised by
    Qwix, forward and backward (docs/notes/matmul_precision.md)."""

    def __post_init__(self) -> None:
        """Refuse a chunk of nothing."""
        super().__post_init__()
        require_at_least(1, self, "compute", "loss_chunk_tokens")


@dataclass(frozen=True)
class MeshConfig(ConfigSection):
    """Sizes of the mesh axes. One of them may be -1: all remaining devices."""

    replica: int = 1
    """Copies of the parameters; on several slices there is one on each."""
    fsdp: int = -1
    """Parts that the parameters lie in, each with rows of its own."""
    tensor: int = 1
    """Parts of the heads, the MLP and the vocabulary."""
    context: int = 1
    """Parts of a row, for rows too long for one chip; the parameters lie in them too."""

    @property
    def without_context(self) -> "MeshConfig":
        """The same devices where a row lies on one: what generation needs."""
        rest = -1 in (self.fsdp, self.context)
        return replace(self, fsdp=-1 if rest else self.fsdp * self.context, context=1)


@dataclass(frozen=True)
class CorpusConfig(ConfigSection):
    """Documents of one origin."""

    name: str
    source: str
    """A path or glob (local or ``gs://``) of JSON Lines, Parquet or text files, compressed or not,
    or ``tfds:NAME`` / ``tfds:NAME:SPLIT``. A path that exists is never read as a glob."""
    weight: float = 1.0
    """Share of its group's rows, relative to the group's other corpora."""
    text_field: str = "text"


@dataclass(frozen=True)
class ChatConfig(ConfigSection):
    """How conversations become rows."""

    template: Literal["auto", "llama3"] = "auto"
    """``auto``: the ``chat_template`` of the tokenizer's folder if it has one, else Llama-3's."""
    loss_on: Literal["assistant", "last", "all"] = option("assistant", former_name="learn")
    """What is learnt: every assistant turn with its end token, the last of them, or all."""
    too_long: Literal["drop", "truncate_start", "truncate_end"] = "drop"
    """A conversation longer than a row is left out, or loses tokens at the named end; counted."""


@dataclass(frozen=True)
class DataConfig(ConfigSection):
    """Token rows and their mixture."""

    tokenizer: str
    """A ``tokenizer.model`` (tiktoken or SentencePiece), a ``tokenizer.json``, or their folder."""
    prepared: str
    """Folder in which ``prepare`` keeps token rows."""
    sequence_length: int
    almr: Annotated[
        float | tuple[tuple[int, float], ...], tyro.conf.arg(metavar="SHARE|STEP SHARE ...")
    ]
    """Additional-language mixture ratio: share of the tokens trained on that come from
    ``additional``; or stages, ``((from_step, almr), ...)``."""
    additional: tuple[CorpusConfig, ...] = ()
    """Corpora of the language to add."""
    original: tuple[CorpusConfig, ...] = ()
    """Corpora of what the model knows already (replay)."""
    heldout: tuple[CorpusConfig, ...] = ()
    """Corpora to evaluate on, never to train on."""
    max_epochs: float = 4.0
    """Passes over any corpus beyond which a run is refused before it starts. Up to four passes cost
    little against fresh text (Muennighoff et al. 2023, arXiv 2305.16264)."""
    bad_documents: Literal["error", "skip"] = "error"
    """A line that is not JSON, is not UTF-8 or has no text: stop, or skip and count it."""
    chat: ChatConfig | None = None
    """Set: ``additional`` and ``original`` hold conversations or, for a preference objective,
    preferences; unset: documents. ``heldout`` holds documents always."""

    def almr_stages(self) -> tuple[tuple[int, Fraction], ...]:
        """The ALMR as exact decimals: ``((from_step, almr), ...)``, the first from step 0."""
        stages = self.almr if isinstance(self.almr, tuple) else ((0, self.almr),)
        steps = [step for step, _ in stages]
        if not stages or steps[0] != 0 or steps != sorted(set(steps)):
            raise UserError(f"data.almr={self.almr}: stages must start at step 0 and rise.")
        for _, almr in stages:
            if not 0 <= almr <= 1:
                raise UserError(f"data.almr={almr:g} is outside [0, 1].")
        return tuple((step, Fraction(str(almr))) for step, almr in stages)

    def __post_init__(self) -> None:
        """Refuse what no run can use."""
        super().__post_init__()
        require_nonempty("data", tokenizer=self.tokenizer, prepared=self.prepared)
        shares = {almr for _, almr in self.almr_stages()}
        require_at_least(1, self, "data", "sequence_length")
        require_above_zero("data.max_epochs", self.max_epochs)
        if max(shares) > 0 and not self.additional:
            raise UserError("data.almr is above 0 but data.additional names no corpus.")
        if min(shares) < 1 and not self.original:
            raise UserError("data.almr is below 1 but data.original names no corpus.")
        for group in (self.additional + self.original, self.heldout):
            names = [corpus.name for corpus in group]
            for name in names:
                if names.count(name) > 1:
                    raise UserError(
                        f"data: two corpora are named {name!r}; give each its own name."
                    )
        for corpus in self.additional + self.original:
            require_above_zero(f"data: weight of corpus {corpus.name!r}", corpus.weight)
            if corpus.name in ("additional", "original"):
                raise UserError(
                    f"data: a corpus cannot be named {corpus.name!r}: its group's loss is."
                )


@dataclass(frozen=True)
class OptimizerConfig(ConfigSection):
    """AdamW and the learning-rate schedule."""

    peak_learning_rate: float
    schedule: Literal["cosine", "wsd", "constant", "linear"] = "cosine"
    """``wsd``: warm-up, stable, then a linear decay over ``decay_steps``."""
    warmup_steps: int = 0
    initial_learning_rate: float = 0.0
    """Where the warm-up starts; to re-warm, the rate at which the base's training ended."""
    final_learning_rate_fraction: float = 0.1
    """The last step's rate as a share of the peak (``cosine``, ``linear``, ``wsd``)."""
    decay_steps: int = 0
    """Length of ``wsd``'s decay."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Not applied to norm scales."""
    clip_norm: float = 1.0
    """Bound on the global gradient norm; a huge one (1e9) clips nothing."""

    def __post_init__(self) -> None:
        """Refuse what would train nothing."""
        super().__post_init__()
        require_above_zero("optimizer.clip_norm", self.clip_norm)
        require_above_zero("optimizer.eps", self.eps)
        require_share(self, "optimizer", "beta1", "beta2", below_one=True)
        require_share(self, "optimizer", "final_learning_rate_fraction")
        require_at_least(0, self, "optimizer", "peak_learning_rate", "initial_learning_rate")
        require_at_least(0, self, "optimizer", "warmup_steps", "decay_steps", "weight_decay")


@dataclass(frozen=True)
class NextTokenConfig(ConfigSection):
    """The objective of CPT and SFT: cross-entropy of the next token where the mask is set."""

    z_loss: float = 0.0
    """Weight of the mean squared log-normaliser (PaLM, arXiv 2204.02311, section 5)."""
    neftune_alpha: float = 0.0
    """Scale of the uniform noise on embeddings (NEFTune, arXiv 2310.05914); 0 adds none."""

    def __post_init__(self) -> None:
        """Refuse weights without meaning."""
        super().__post_init__()
        require_at_least(0, self, "objective", "z_loss", "neftune_alpha")


@dataclass(frozen=True)
class PreferenceConfig(ConfigSection):
    """The objective of DPO and its kin (``training/preference_losses.py`` has the equations)."""

    loss: Literal["sigmoid", "robust", "ipo", "sigmoid_norm", "hinge", "simpo", "orpo", "kto"]
    """``simpo`` and ``orpo`` need no reference; ``kto`` takes unpaired answers too."""
    beta: float = 0.1
    label_smoothing: float = 0.0
    """Share of preferences taken to be wrong (``sigmoid``: cDPO; ``robust``)."""
    gamma: float = 1.0
    """``simpo``'s target margin."""
    nll_weight: float = 0.0
    """Weight of the chosen answer's mean nats a token beside the loss (RPO); ``orpo`` has it."""
    mask_format_tokens: bool = False
    """Leave the header and end tokens of answers out of log-probabilities and NLL, as Llama 3 does
    (arXiv 2407.21783, section 4.1.4)."""
    desirable_weight: float = 1.0
    """``kto``'s weight of good answers."""
    undesirable_weight: float = 1.0
    """``kto``'s weight of bad answers."""
    chosen_logp_drop_warning: float = option(20.0, former_name="chosen_fall_bound")
    """Nats by which ``logps/chosen`` may fall below the reference before a warning."""

    def __post_init__(self) -> None:
        """Refuse weights without meaning."""
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
                f"objective.label_smoothing is for sigmoid and robust, not {self.loss}."
            )
        if self.nll_weight and self.loss in ("orpo", "kto"):
            told = "has that term already" if self.loss == "orpo" else "knows no chosen answer"
            raise UserError(f"objective.nll_weight must be 0: {self.loss} {told}.")


@dataclass(frozen=True)
class LoraConfig(ConfigSection):
    """Adapters beside frozen weights (LoRA, arXiv 2106.09685)."""

    rank: int
    alpha: float
    """What an adapter adds is multiplied by ``alpha / rank``."""
    targets: tuple[str, ...] = ("query", "key", "value", "output", "gate", "up", "down")
    """Matrices of every layer that get adapters."""

    @property
    def scale(self) -> float:
        """Of what an adapter adds."""
        return self.alpha / self.rank

    def __post_init__(self) -> None:
        """Refuse targets that no layer has."""
        super().__post_init__()
        require_at_least(1, self, "lora", "rank")
        require_above_zero("lora.alpha", self.alpha)
        known = ("query", "key", "value", "output", "gate", "up", "down")
        for target in self.targets:
            if target not in known:
                raise UserError(
                    f"lora.targets: unknown {target!r}{did_you_mean(target, list(known))}"
                )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise UserError(f"lora.targets={self.targets}: name each matrix once, at least one.")


@dataclass(frozen=True)
class CheckpointConfig(ConfigSection):
    """When to save and how many to keep."""

    every_steps: int = 500
    keep: int = 3

    def __post_init__(self) -> None:
        """Refuse to keep none."""
        super().__post_init__()
        require_at_least(1, self, "checkpoint", "every_steps", "keep")


@dataclass(frozen=True)
class EvaluationConfig(ConfigSection):
    """When to measure held-out loss and bits per byte."""

    every_steps: int = 500
    early_evaluations: bool = option(True, former_name="dense")
    """Also at steps 1, 2, 4, 8, ... below ``every_steps``: forgetting rises first."""
    documents: int = 256
    """Held-out documents a corpus, spread evenly over it."""
    batch_size: int = 8
    """Windows of ``data.sequence_length`` scored at a time, over all devices."""

    def __post_init__(self) -> None:
        """Refuse to measure nothing."""
        super().__post_init__()
        require_at_least(1, self, "evaluation", "every_steps", "documents", "batch_size")


@dataclass(frozen=True)
class TrainConfig(ConfigSection):
    """One run."""

    output: str
    """The run's folder: checkpoints, metrics, resolved config. An existing run resumes."""
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    num_steps: int
    global_batch_size: int
    """Rows a step, over all devices and micro-batches."""
    microbatch_size: int = 0
    """Rows a forward and backward pass, over all devices; 0 is the whole batch."""
    init_from: str = ""
    """Hugging Face folder or run folder to start from; empty draws random weights."""
    seed: int = 0
    objective: NextTokenConfig | PreferenceConfig = field(default_factory=NextTokenConfig)
    lora: LoraConfig | None = None
    """Set: adapters are trained and the weights of ``init_from`` stay as they are."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log_every_steps: int = 10

    @property
    def num_microbatches(self) -> int:
        """Forward and backward passes a step."""
        return self.global_batch_size // self.microbatch_rows

    @property
    def microbatch_rows(self) -> int:
        """Rows a forward and backward pass, over all devices: ``microbatch_size``, or the batch."""
        return self.microbatch_size or self.global_batch_size

    @property
    def min_microbatch_rows(self) -> int:
        """That a micro-batch can have: KTO estimates a mean over it."""
        return 2 if getattr(self.objective, "loss", None) == "kto" else 1

    def __post_init__(self) -> None:
        """Refuse what cannot run on any machine."""
        super().__post_init__()
        require_nonempty("", output=self.output)
        require_at_least(1, self, "", "num_steps", "global_batch_size", "log_every_steps")
        # A key is of 32 bits: a larger seed would be another one's.
        for name, bits in (("seed", 32), ("num_steps", 31), ("global_batch_size", 31)):
            if not 0 <= getattr(self, name) < 2**bits:
                raise UserError(f"{name}={getattr(self, name)} must be in [0, 2**{bits}).")
        if self.microbatch_size < 0 or (
            self.microbatch_size and self.global_batch_size % self.microbatch_size
        ):
            raise UserError(
                f"global_batch_size={self.global_batch_size} must be a multiple of "
                f"microbatch_size={self.microbatch_size}."
            )
        if isinstance(self.objective, PreferenceConfig) and self.data.chat is None:
            raise UserError(f"objective.loss={self.objective.loss} needs data.chat: preferences.")
        if self.microbatch_rows < self.min_microbatch_rows:
            raise UserError(
                "objective.loss=kto estimates a mean over a micro-batch: set microbatch_size (or "
                "global_batch_size) to at least 2."
            )
        if self.lora and not self.init_from:
            raise UserError("lora needs init_from: adapters go beside weights that were trained.")
        if self.data.sequence_length > self.model.context_length:
            raise UserError(
                f"data.sequence_length={self.data.sequence_length} is longer than "
                f"model.context_length={self.model.context_length}."
            )
