"""Every option of a training run, as frozen dataclasses that validate their values.

A config is a Python file that defines ``config = TrainConfig(...)``, or the JSON file that a run
writes next to its checkpoints. Architecture constants have no default, so that a forgotten
``rope_theta`` is an error and not a different model. ``option`` declares whether a field is part of
the compiled step and whether a resumed run may change it.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Literal

import tyro

from llama_cpt.config.fields import (
    ConfigSection,
    option,
    require_above_zero,
    require_at_least,
    require_nonempty,
    require_share,
)
from llama_cpt.config.lora import LoraConfig
from llama_cpt.config.objectives import NextTokenConfig, PreferenceConfig
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class RopeScaling(ConfigSection):
    """The frequency scaling of Llama 3.1 (``rope_type: llama3`` in a Hugging Face config)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context_length: int


@dataclass(frozen=True)
class ModelConfig(ConfigSection):
    """The architecture of a Llama model, as in a Hugging Face ``config.json``.

    Fields that set the shapes of the weights never change on resume, because a checkpoint of other
    shapes cannot be restored.
    """

    vocab_size: int = option(on_resume="never")
    embed_dim: int = option(on_resume="never")
    mlp_dim: int = option(on_resume="never")
    num_layers: int = option(on_resume="never")
    num_heads: int = option(on_resume="never")
    num_kv_heads: int = option(on_resume="never")
    head_dim: int = option(on_resume="never")
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tied_embeddings: bool = option(on_resume="never")
    context_length: int
    """The longest row that the model supports (``max_position_embeddings``)."""

    def __post_init__(self) -> None:
        """Validate the shapes."""
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


@dataclass(frozen=True)
class ComputeConfig(ConfigSection):
    """Precision, kernels and rematerialization; only the precision changes what is computed."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations and matrix operands; parameters, loss and norms are float32."""
    remat: Literal["none", "minimal", "dots", "full", "offload"] = option("full", on_resume="warn")
    """Recomputation in the backward pass, from ``none`` to ``full``, all but each layer's input."""
    attention: Literal["auto", "pallas", "splash", "cudnn", "reference"] = option(
        "auto", on_resume="warn"
    )
    """The attention kernel; ``auto`` is resolved once, at start, by backend, row length and
    ``dtype``, and printed."""
    loss_chunk_tokens: int = option(2048, on_resume="warn")
    """Tokens per device whose logits exist at the same time."""
    matmul_precision: Literal["bf16", "int8", "fp8"] = "bf16"
    """Operands of the layers' products: ``bf16`` uses ``dtype``; ``int8`` and ``fp8`` are quantized
    by Qwix, forward and backward (docs/matmul_precision.md)."""

    def __post_init__(self) -> None:
        """Validate the chunk size."""
        super().__post_init__()
        require_at_least(1, self, "compute", "loss_chunk_tokens")


@dataclass(frozen=True)
class MeshConfig(ConfigSection):
    """Sizes of the mesh axes. One of them may be -1: all remaining devices."""

    replica: int = option(1, on_resume="warn")
    """Copies of the parameters; with several slices, one per slice."""
    fsdp: int = option(-1, on_resume="warn")
    """Shards of the parameters; each shard also processes its own rows."""
    tensor: int = option(1, on_resume="warn")
    """Shards of the heads, the MLP and the vocabulary."""
    context: int = option(1, on_resume="warn")
    """Shards of a row, for rows too long for one chip; the parameters are sharded along it too."""

    @property
    def without_context(self) -> "MeshConfig":
        """The same devices with each row on a single one, as generation needs."""
        rest = -1 in (self.fsdp, self.context)
        return replace(self, fsdp=-1 if rest else self.fsdp * self.context, context=1)


@dataclass(frozen=True)
class CorpusConfig(ConfigSection):
    """A corpus: documents or conversations from one source."""

    name: str
    source: str = option(on_resume="ignore")
    """A path or glob (local or ``gs://``) of JSON Lines, Parquet or text files, compressed or not,
    or ``tfds:NAME`` / ``tfds:NAME:SPLIT``. A path that exists is never read as a glob."""
    weight: float = 1.0
    """Share of the group's rows, relative to the other corpora of the group."""
    text_field: str = "text"
    """The field of a record that holds the text."""


@dataclass(frozen=True)
class ChatConfig(ConfigSection):
    """The conversion of conversations to rows."""

    template: Literal["auto", "llama3"] = "auto"
    """``auto``: the ``chat_template`` in the tokenizer's folder if it has one, else Llama 3's."""
    loss_on: Literal["assistant", "last", "all"] = option("assistant", former_name="learn")
    """Tokens with a loss: every assistant turn with its end token, the last such turn, or all."""
    too_long: Literal["drop", "truncate_start", "truncate_end"] = "drop"
    """A conversation longer than a row is dropped or truncated at the given end, and counted."""


def _num_corpora(data: "DataConfig") -> int:
    """Return the number of training corpora, of which the step reports the losses by index."""
    return len(data.additional + data.original)


@dataclass(frozen=True)
class DataConfig(ConfigSection):
    """Token rows and their mixture."""

    tokenizer: str = option(compiled=False, on_resume="ignore", is_path=True)
    """A ``tokenizer.model`` (tiktoken or SentencePiece), a ``tokenizer.json``, or their folder."""
    prepared: str = option(compiled=False, on_resume="ignore", is_path=True)
    """The folder in which ``prepare`` keeps token rows."""
    sequence_length: int
    """Tokens per row."""
    almr: Annotated[
        float | tuple[tuple[int, float], ...], tyro.conf.arg(metavar="SHARE|STEP SHARE ...")
    ] = option(compiled=False)
    """Additional-language mixture ratio: the share of the training tokens that come from
    ``additional``; or stages, ``((from_step, almr), ...)``."""
    additional: tuple[CorpusConfig, ...] = option((), compiled=_num_corpora)
    """Corpora of the language to add."""
    original: tuple[CorpusConfig, ...] = option((), compiled=_num_corpora)
    """Corpora of what the base model was trained on (replay)."""
    heldout: tuple[CorpusConfig, ...] = option((), compiled=False)
    """Corpora for evaluation only."""
    max_epochs: float = option(4.0, compiled=False, on_resume="warn")
    """Epochs of any corpus above which a run is refused before it starts. Up to four epochs cost
    little compared with fresh text (Muennighoff et al. 2023, arXiv 2305.16264)."""
    bad_documents: Literal["error", "skip"] = option("error", compiled=False)
    """Treatment of a line that is not JSON, is not UTF-8 or has no text: stop or skip it."""
    chat: ChatConfig | None = None
    """If set, ``additional`` and ``original`` hold conversations or, for a preference objective,
    preferences; otherwise documents. ``heldout`` always holds documents."""

    def almr_stages(self) -> tuple[tuple[int, Fraction], ...]:
        """Return the ALMR as exact decimals: ``((from_step, almr), ...)``, starting at step 0."""
        stages = self.almr if isinstance(self.almr, tuple) else ((0, self.almr),)
        steps = [step for step, _ in stages]
        if not stages or steps[0] != 0 or steps != sorted(set(steps)):
            raise UserError(
                f"data.almr={self.almr}: the steps of its stages must start at 0 and increase."
            )
        for _, almr in stages:
            if not 0 <= almr <= 1:
                raise UserError(f"data.almr={almr:g} must be in [0, 1]; set a share of tokens.")
        return tuple((step, Fraction(str(almr))) for step, almr in stages)

    def __post_init__(self) -> None:
        """Validate the shares, the corpora and their names."""
        super().__post_init__()
        require_nonempty("data", tokenizer=self.tokenizer, prepared=self.prepared)
        shares = {almr for _, almr in self.almr_stages()}
        require_at_least(1, self, "data", "sequence_length")
        require_above_zero("data.max_epochs", self.max_epochs)
        if max(shares) > 0 and not self.additional:
            raise UserError(
                f"data.almr={self.almr} is above 0, but data.additional is empty; add a corpus."
            )
        if min(shares) < 1 and not self.original:
            raise UserError(
                f"data.almr={self.almr} is below 1, but data.original is empty; add a corpus."
            )
        for group in (self.additional + self.original, self.heldout):
            names = [corpus.name for corpus in group]
            for name in names:
                if names.count(name) > 1:
                    raise UserError(f"data: two corpora are named {name!r}; rename one of them.")
        for corpus in self.additional + self.original:
            require_above_zero(f"data: weight of corpus {corpus.name!r}", corpus.weight)
            if corpus.name in ("additional", "original"):
                raise UserError(
                    f"corpus name {corpus.name!r} is reserved for the metric "
                    f"train/{corpus.name}/loss; choose another."
                )


@dataclass(frozen=True)
class OptimizerConfig(ConfigSection):
    """AdamW and the learning-rate schedule; the rate of a step is an argument of the step."""

    peak_learning_rate: float = option(compiled=False)
    schedule: Literal["cosine", "wsd", "constant", "linear"] = option("cosine", compiled=False)
    """The schedule after the warm-up; ``wsd`` is stable, then linear over ``decay_steps``."""
    warmup_steps: int = option(0, compiled=False)
    initial_learning_rate: float = option(0.0, compiled=False)
    """The rate at which the warm-up starts; to re-warm, the final rate of the base's training."""
    final_learning_rate_fraction: float = option(0.1, compiled=False)
    """The rate of the last step as a share of the peak (``cosine``, ``linear``, ``wsd``)."""
    decay_steps: int = option(0, compiled=False)
    """Steps of the decay of ``wsd``."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Not applied to norm scales."""
    clip_norm: float = 1.0
    """Maximum of the global gradient norm; a huge value (1e9) disables clipping."""

    def __post_init__(self) -> None:
        """Validate the rates and their schedule."""
        super().__post_init__()
        require_above_zero("optimizer.clip_norm", self.clip_norm)
        require_above_zero("optimizer.eps", self.eps)
        require_share(self, "optimizer", "beta1", "beta2", below_one=True)
        require_share(self, "optimizer", "final_learning_rate_fraction")
        require_at_least(0, self, "optimizer", "peak_learning_rate", "initial_learning_rate")
        require_at_least(0, self, "optimizer", "warmup_steps", "decay_steps", "weight_decay")


@dataclass(frozen=True)
class CheckpointConfig(ConfigSection):
    """The interval between checkpoints, and the number of those that are kept."""

    every_steps: int = option(500, compiled=False, on_resume="warn")
    keep: int = option(3, compiled=False, on_resume="warn")

    def __post_init__(self) -> None:
        """Validate the counts."""
        super().__post_init__()
        require_at_least(1, self, "checkpoint", "every_steps", "keep")


@dataclass(frozen=True)
class EvaluationConfig(ConfigSection):
    """Held-out evaluation (loss and bits per byte): interval, documents and batch size."""

    every_steps: int = option(500, compiled=False, on_resume="warn")
    early_evaluations: bool = option(True, former_name="dense", compiled=False, on_resume="warn")
    """Also evaluate at steps 1, 2, 4, ... below ``every_steps``, where forgetting rises first."""
    documents: int = option(256, compiled=False, on_resume="warn")
    """Held-out documents per corpus, spread evenly over it."""
    batch_size: int = option(8, on_resume="warn")
    """Windows of ``data.sequence_length`` tokens per batch, over all devices."""

    def __post_init__(self) -> None:
        """Validate the counts."""
        super().__post_init__()
        require_at_least(1, self, "evaluation", "every_steps", "documents", "batch_size")


def _seed_in_step(config: "TrainConfig") -> int | None:
    """Return the seed if the compiled step draws random numbers, which makes it a constant."""
    return config.seed if getattr(config.objective, "neftune_alpha", 0.0) > 0 else None


@dataclass(frozen=True)
class TrainConfig(ConfigSection):
    """A training run."""

    output: str = option(compiled=False, on_resume="ignore", is_path=True)
    """The run's folder: checkpoints, metrics, resolved config. An existing run resumes."""
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    num_steps: int = option(compiled=False)
    global_batch_size: int
    """Rows per step, over all devices and micro-batches."""
    microbatch_size: int = 0
    """Rows per forward and backward pass, over all devices; 0 is the whole batch."""
    init_from: str = option("", compiled=False, on_resume="never", is_path=True)
    """Hugging Face folder or run folder to start from; empty: random weights."""
    seed: int = option(0, compiled=_seed_in_step)
    """Seed of the initial weights, the data order and the noise of NEFTune."""
    objective: NextTokenConfig | PreferenceConfig = option(NextTokenConfig)
    lora: LoraConfig | None = None
    """If set, adapters are trained and the weights of ``init_from`` stay frozen."""
    compute: ComputeConfig = option(ComputeConfig)
    mesh: MeshConfig = option(MeshConfig)
    checkpoint: CheckpointConfig = option(CheckpointConfig)
    evaluation: EvaluationConfig = option(EvaluationConfig)
    log_every_steps: int = option(10, compiled=False, on_resume="warn")

    @property
    def num_microbatches(self) -> int:
        """Forward and backward passes per step."""
        return self.global_batch_size // self.microbatch_rows

    @property
    def microbatch_rows(self) -> int:
        """Rows per forward and backward pass: ``microbatch_size``, or the whole batch."""
        return self.microbatch_size or self.global_batch_size

    @property
    def min_microbatch_rows(self) -> int:
        """Minimum rows per micro-batch: 2 for KTO, whose KL estimate is a mean over them."""
        return 2 if getattr(self.objective, "loss", None) == "kto" else 1

    def __post_init__(self) -> None:
        """Validate the sizes and the combination of the sections."""
        super().__post_init__()
        require_nonempty("", output=self.output)
        require_at_least(1, self, "", "num_steps", "global_batch_size", "log_every_steps")
        self._check_sizes()
        if isinstance(self.objective, PreferenceConfig) and self.data.chat is None:
            raise UserError(
                f"objective.loss={self.objective.loss} needs preference data; set data.chat."
            )
        if self.lora and not self.init_from:
            raise UserError("lora needs trained weights; set init_from to their folder.")
        if self.data.sequence_length > self.model.context_length:
            raise UserError(
                f"data.sequence_length={self.data.sequence_length} must be at most "
                f"model.context_length={self.model.context_length}."
            )

    def _check_sizes(self) -> None:
        # A JAX key takes 32 bits of the seed: a larger seed would give the key of another one.
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
        if self.microbatch_rows < self.min_microbatch_rows:
            raise UserError(
                "objective.loss=kto estimates a mean over a micro-batch; set microbatch_size "
                f"(or global_batch_size) to at least {self.min_microbatch_rows}."
            )
