"""The options of a training run: frozen dataclasses that validate their values.

A config is a Python file that defines ``config = TrainConfig(...)``, or the JSON file that a run
writes next to its checkpoints. Architecture constants have no default, so that a missing
``rope_theta`` is an error and does not silently define a different model. ``option`` and ``traits``
declare whether the compiled step depends on a field and whether the field can change on resume.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from llama_cpt.config.chat import ChatConfig
from llama_cpt.config.corpus import CorpusConfig
from llama_cpt.config.fields import (
    ConfigSection,
    option,
    require_above_zero,
    require_at_least,
    require_nonempty,
    require_share,
    traits,
)
from llama_cpt.config.lora import LoraConfig
from llama_cpt.config.model import ModelConfig
from llama_cpt.config.monitors import ForgettingConfig, SpikeConfig
from llama_cpt.config.objectives import NextTokenConfig, PreferenceConfig
from llama_cpt.config.stages import Stages, check_weights, exact_stages
from llama_cpt.runtime.errors import UserError


@dataclass(frozen=True)
class ComputeConfig(ConfigSection):
    """Precision, kernels and rematerialization: options for speed, memory and accuracy."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of activations and matrix operands. Parameters, loss and norm statistics are float32."""
    remat: Literal["none", "minimal", "dots", "full", "offload"] = option("full", on_resume="warn")
    """Activations that the forward pass saves for the backward pass. ``none`` saves all
    activations; ``dots`` saves the results of all matrix products; ``minimal`` saves the results of
    attention and of products with weights; ``full`` saves the input of each layer; ``offload``
    saves the input of each layer in host memory."""
    attention: Literal["auto", "pallas", "splash", "cudnn", "reference"] = option(
        "auto", on_resume="warn"
    )
    """The attention implementation. If it is ``auto``, an implementation is selected at launch by
    backend, row length and ``dtype``, and its name is logged."""
    loss_chunk_tokens: int = option(2048, on_resume="warn")
    """Number of tokens per device for which logits are computed at a time, to limit memory."""
    matmul_precision: Literal["bf16", "int8", "fp8"] = "bf16"
    """Type of the operands of matrix products with the weights of the layers. ``bf16`` means
    ``dtype``. With ``int8`` and ``fp8``, Qwix quantizes the operands in the forward and backward
    pass (docs/notes/matmul_precision.md)."""

    def __post_init__(self) -> None:
        """Validate that ``loss_chunk_tokens`` is at least 1."""
        super().__post_init__()
        require_at_least(1, self, "compute", "loss_chunk_tokens")


@dataclass(frozen=True)
class MeshConfig(ConfigSection):
    """Sizes of the mesh axes. One size may be -1, which means all remaining devices."""

    replica: int = option(1, on_resume="warn")
    """Number of copies of the parameters. If there are several TPU slices, use one copy per
    slice."""
    fsdp: int = option(-1, on_resume="warn")
    """Number of shards of the parameters. The rows of a batch are divided over the same axis."""
    tensor: int = option(1, on_resume="warn")
    """Number of shards into which attention heads, MLP and vocabulary are divided."""
    context: int = option(1, on_resume="warn")
    """Number of shards into which each row is divided, for rows too long for one chip. Parameters
    are sharded over this axis as well."""

    @property
    def without_context(self) -> "MeshConfig":
        """A mesh with the same number of devices and ``context`` 1, as generation requires."""
        rest = -1 in (self.fsdp, self.context)
        return replace(self, fsdp=-1 if rest else self.fsdp * self.context, context=1)


def _num_corpora(data: "DataConfig") -> int:
    """Return the number of training corpora. The compiled step computes a loss per corpus."""
    return len(data.additional + data.original)


@dataclass(frozen=True)
class DataConfig(ConfigSection):
    """Options of the token rows and of the mixture of corpora."""

    tokenizer: str = field(metadata=traits(compiled=False, on_resume="ignore", is_path=True))
    """Path of a ``tokenizer.model`` (tiktoken or SentencePiece) or ``tokenizer.json``, or of the
    folder that contains the file."""
    prepared: str = field(metadata=traits(compiled=False, on_resume="ignore", is_path=True))
    """Folder to which ``prepare`` writes token rows and from which ``train`` reads them."""
    sequence_length: int
    """Number of input tokens per row."""
    almr: Annotated[
        float | tuple[tuple[int, float], ...], tyro.conf.arg(metavar="SHARE|STEP SHARE ...")
    ] = field(metadata=traits(compiled=False))
    """Additional-language mixture ratio: the share of training tokens from ``additional``, in [0,
    1]. ``((from_step, almr), ...)`` changes the ratio at the given steps."""
    additional: tuple[CorpusConfig, ...] = option((), compiled=_num_corpora)
    """Corpora in the language to add."""
    original: tuple[CorpusConfig, ...] = option((), compiled=_num_corpora)
    """Corpora for replay, which should resemble the training data of the base model."""
    heldout: tuple[CorpusConfig, ...] = option((), compiled=False)
    """Corpora that are used only for held-out evaluation."""
    max_epochs: float = option(4.0, compiled=False, on_resume="warn")
    """Maximum number of epochs over any corpus. A run that needs more fails before training starts.
    Text that is repeated up to four times is almost as good as new text (Muennighoff et al. 2023,
    arXiv 2305.16264)."""
    bad_documents: Literal["error", "skip"] = option("error", compiled=False)
    """Treatment of documents that are not valid JSON or UTF-8, or that contain no text: raise an
    error, or skip the document."""
    document_tokens: tuple[str, str] | None = option(None, compiled=False)
    """Names of the tokens before and after each document; the first can be empty. None means the
    tokens that the tokenizer adds before a text, and EOS."""
    chat: ChatConfig | None = None
    """Options of conversations. If set, ``additional`` and ``original`` contain conversations,
    except corpora with ``kind="documents"``; with a preference loss, they contain preferences. If
    None, they contain documents. ``heldout`` always contains documents."""

    def kind_of(self, corpus: CorpusConfig) -> str:
        """Return the kind of a training corpus: ``documents`` or ``conversations``."""
        if corpus.kind == "auto":
            return "conversations" if self.chat else "documents"
        return corpus.kind

    def corpora_of(self, kind: str) -> list[CorpusConfig]:
        """Return the training corpora of ``kind``: ``documents`` or ``conversations``."""
        return [one for one in self.additional + self.original if self.kind_of(one) == kind]

    def almr_stages(self) -> Stages:
        """Return ``((from_step, almr), ...)`` with exact decimal ratios; the first step is 0.

        Raises UserError if the steps do not increase or a ratio is outside [0, 1].
        """
        return exact_stages("data.almr", self.almr, share=True)

    def __post_init__(self) -> None:
        """Validate the paths, the mixture ratio, the corpora and their names."""
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
            if corpus.name in ("additional", "original"):
                raise UserError(
                    f"corpus name {corpus.name!r} is reserved for the metric "
                    f"train/{corpus.name}/loss; choose another."
                )
        self._check_weights()
        self._check_kinds()

    def _check_weights(self) -> None:
        added = self.almr_stages()
        kept = tuple((step, 1 - almr) for step, almr in added)
        groups = (("additional", added, self.additional), ("original", kept, self.original))
        for group, shares, corpora in groups:
            check_weights(group, shares, {one.name: one.weight_stages() for one in corpora})

    def _check_kinds(self) -> None:
        chats = self.corpora_of("conversations")
        if chats and self.chat is None:
            raise UserError(
                f"data: corpus {chats[0].name!r} has kind=conversations, but data.chat is not set; "
                "set data.chat=ChatConfig()."
            )
        for corpus in self.heldout:
            if corpus.kind == "conversations":
                raise UserError(
                    f"data.heldout: corpus {corpus.name!r} has kind=conversations, but held-out "
                    "corpora contain documents; name a source of documents."
                )


@dataclass(frozen=True)
class OptimizerConfig(ConfigSection):
    """Options of AdamW and of the learning-rate schedule."""

    peak_learning_rate: float = field(metadata=traits(compiled=False))
    schedule: Literal["cosine", "wsd", "constant", "linear"] = option("cosine", compiled=False)
    """The schedule after the warm-up. ``cosine`` and ``linear`` decay from the peak rate on the
    first step to the final rate on the last step. ``wsd`` is constant and then decays linearly over
    the last ``decay_steps`` steps."""
    warmup_steps: int = option(0, compiled=False)
    initial_learning_rate: float = option(0.0, compiled=False)
    """Learning rate at the start of the warm-up, for example the final rate of pretraining."""
    final_learning_rate_fraction: float = option(0.1, compiled=False)
    """Learning rate of the last step divided by the peak rate, for ``cosine``, ``linear`` and
    ``wsd``."""
    decay_steps: int = option(0, compiled=False)
    """Number of final steps over which the ``wsd`` schedule decays the learning rate."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Weight decay of all parameters except norm scales."""
    clip_norm: float = 1.0
    """Maximum global norm of the gradients. Larger gradients are scaled down to this norm.
    1e9 disables clipping."""

    def __post_init__(self) -> None:
        """Validate the ranges of the values."""
        super().__post_init__()
        require_above_zero("optimizer.clip_norm", self.clip_norm)
        require_above_zero("optimizer.eps", self.eps)
        require_share(self, "optimizer", "beta1", "beta2", below_one=True)
        require_share(self, "optimizer", "final_learning_rate_fraction")
        require_at_least(0, self, "optimizer", "peak_learning_rate", "initial_learning_rate")
        require_at_least(0, self, "optimizer", "warmup_steps", "decay_steps", "weight_decay")


@dataclass(frozen=True)
class CheckpointConfig(ConfigSection):
    """The number of steps between checkpoints and the number of checkpoints to keep."""

    every_steps: int = option(500, compiled=False, on_resume="warn")
    keep: int = option(3, compiled=False, on_resume="warn")

    def __post_init__(self) -> None:
        """Validate that the counts are at least 1."""
        super().__post_init__()
        require_at_least(1, self, "checkpoint", "every_steps", "keep")


@dataclass(frozen=True)
class EvaluationConfig(ConfigSection):
    """Options of the held-out evaluation during training: loss and bits per byte per corpus."""

    every_steps: int = option(500, compiled=False, on_resume="warn")
    early_evaluations: bool = option(True, former_name="dense", compiled=False, on_resume="warn")
    """True to also evaluate at steps 1, 2, 4, ... below ``every_steps``, because forgetting starts
    early."""
    documents: int = option(0, compiled=False, on_resume="warn")
    """Number of evaluated documents per held-out corpus. These documents are evenly spaced within
    the corpus. 0 means at most 256, and so few that all evaluations together take at most 5 % of
    the run's tokens; if necessary, some evaluations between the first and the last are left out."""
    batch_size: int = option(8, on_resume="warn")
    """Number of windows of ``data.sequence_length`` tokens per batch, over all devices."""

    def __post_init__(self) -> None:
        """Validate that the counts are large enough."""
        super().__post_init__()
        require_at_least(1, self, "evaluation", "every_steps", "batch_size")
        require_at_least(0, self, "evaluation", "documents")


def _seed_in_step(config: "TrainConfig") -> int | None:
    """Return the seed if NEFTune is on, else None.

    With NEFTune, the compiled step contains the seed.
    """
    return config.seed if getattr(config.objective, "neftune_alpha", 0.0) > 0 else None


@dataclass(frozen=True)
class TrainConfig(ConfigSection):
    """The options of a training run."""

    output: str = field(metadata=traits(compiled=False, on_resume="ignore", is_path=True))
    """Folder for checkpoints, metrics and the resolved config. If the folder already contains a
    run, that run is resumed."""
    data: DataConfig
    optimizer: OptimizerConfig
    num_steps: int = field(metadata=traits(compiled=False))
    global_batch_size: int
    """Number of rows per step, over all devices and micro-batches."""
    model: ModelConfig | None = None
    """The architecture. If it is left out, it is the architecture of ``init_from``."""
    microbatch_size: int = 0
    """Number of rows per forward and backward pass, over all devices; 0 means the whole batch."""
    init_from: str = option("", compiled=False, on_resume="never", is_path=True)
    """Hugging Face folder or run folder with the initial weights; empty for random weights."""
    seed: int = option(0, compiled=_seed_in_step)
    """Seed of the initial weights, the data order and the noise of NEFTune."""
    objective: NextTokenConfig | PreferenceConfig = option(NextTokenConfig)
    lora: LoraConfig | None = None
    """If set, only adapters are trained and the weights of ``init_from`` are frozen."""
    compute: ComputeConfig = option(ComputeConfig)
    mesh: MeshConfig = option(MeshConfig)
    checkpoint: CheckpointConfig = option(CheckpointConfig)
    evaluation: EvaluationConfig = option(EvaluationConfig)
    log_every_steps: int = option(10, compiled=False, on_resume="warn")
    wandb_project: str = option("", compiled=False, on_resume="warn")
    """Project of Weights & Biases to which the metrics are also sent; empty to send nothing."""
    spikes: SpikeConfig = option(SpikeConfig)
    forgetting: ForgettingConfig = option(ForgettingConfig)

    @property
    def architecture(self) -> ModelConfig:
        """``model``; a command sets it once if the config leaves it out.

        Raises UserError if it is not set.
        """
        if self.model is None:
            raise UserError("model is not set; set it, or name the initial weights in init_from.")
        return self.model

    @property
    def watched_corpora(self) -> tuple[str, ...]:
        """Names of the held-out corpora that the forgetting alarm watches."""
        original = tuple(corpus.name for corpus in self.data.original)
        heldout = tuple(corpus.name for corpus in self.data.heldout)
        return self.forgetting.watched(original, heldout)

    @property
    def num_microbatches(self) -> int:
        """Number of forward and backward passes per step."""
        return self.global_batch_size // self.microbatch_rows

    @property
    def microbatch_rows(self) -> int:
        """Number of rows per forward and backward pass, over all devices."""
        return self.microbatch_size or self.global_batch_size

    @property
    def min_microbatch_rows(self) -> int:
        """Minimum rows per micro-batch: 2 for KTO, which averages KL over the rows, else 1."""
        return 2 if getattr(self.objective, "loss", None) == "kto" else 1

    def __post_init__(self) -> None:
        """Validate the sizes, and that the sections can be combined."""
        super().__post_init__()
        require_nonempty("", output=self.output)
        require_at_least(1, self, "", "num_steps", "global_batch_size", "log_every_steps")
        self._check_sizes()
        _ = self.watched_corpora  # Raises UserError if a corpus is missing.
        if isinstance(self.objective, PreferenceConfig) and self.data.chat is None:
            raise UserError(
                f"objective.loss={self.objective.loss} needs preference data; set data.chat."
            )
        documents = self.data.corpora_of("documents")
        if isinstance(self.objective, PreferenceConfig) and documents:
            raise UserError(
                f"objective.loss={self.objective.loss} needs preference data, but corpus "
                f"{documents[0].name!r} has kind=documents; remove it, or set another objective."
            )
        if self.lora and not self.init_from:
            raise UserError("lora needs trained weights; set init_from to their folder.")
        if self.model and self.data.sequence_length > self.model.context_length:
            raise UserError(
                f"data.sequence_length={self.data.sequence_length} must be at most "
                f"model.context_length={self.model.context_length}."
            )

    def _check_sizes(self) -> None:
        # A JAX key uses 32 bits of the seed: a larger seed would repeat the key of a smaller one.
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
