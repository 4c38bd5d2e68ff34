"""Models named on the command line. All models are checked before any weights are loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from llama_cpt.config.model import ModelConfig
from llama_cpt.config.schema import DataConfig
from llama_cpt.evaluation.scores import JUDGE_FOLDER
from llama_cpt.generation.decoder import Decoder, decoder_mesh, load_decoder
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.named_folders import named_folders
from llama_cpt.training.reference import model_identity
from llama_cpt.weights.prompt_format import PromptFormat, prompt_format
from llama_cpt.weights.source import RunFolder, open_source

MAX_WINDOW = 4096
"""Maximum number of tokens per window in which documents are scored, if no model is a run."""
RESERVED_NAMES = (JUDGE_FOLDER, "report.md", "report.html", "differences.png", "languages.png")
"""Names that a model cannot have, because they are names of other files in the output folder."""


@dataclass(frozen=True)
class ModelOptions:
    """Command-line options that apply to every named model."""

    tokenizer: str = ""
    """Tokenizer for all models; if empty, each model uses its own tokenizer."""
    chat_template: bool = False
    """True if the prompts for a model are rendered with the model's chat template."""
    conversations: bool = False
    """True if the models answer conversations, which requires a chat template."""


@dataclass(frozen=True)
class ModelSpec:
    """A named model that passed ``check_model``, without its weights."""

    source: str
    config: ModelConfig
    prompts: PromptFormat
    sequence_length: int | None = None
    """``data.sequence_length`` of the run; None if ``source`` is not the folder of a run."""


@dataclass(frozen=True)
class LoadedModel:
    """A model to evaluate, with its weights on the devices."""

    folder: Path
    """Folder of the model's scores."""
    decoder: Decoder
    prompts: PromptFormat
    mesh: Mesh
    identity: dict[str, str]
    """Settings that the scores depend on, as returned by ``model_settings``."""


def parse_model_names(arguments: Sequence[str]) -> dict[str, str]:
    """Return the source folder of each model, by model name.

    An argument is ``NAME=FOLDER`` or ``FOLDER``. Without ``NAME=``, the name is the last component
    of the path. Raises UserError if two models have the same name, or if a name cannot be the name
    of a folder of scores.
    """
    sources = named_folders(arguments)
    for name in sources:
        if name.startswith(".") or name in RESERVED_NAMES:
            raise UserError(
                f"the model name {name!r} cannot be a folder in --output; set another name with "
                "NAME=FOLDER. A name must not start with a dot, or be "
                f"{' or '.join(RESERVED_NAMES)}."
            )
    return sources


def check_model(label: str, source: str, options: ModelOptions) -> ModelSpec:
    """Check that the model in ``source`` can be evaluated, and return its ``ModelSpec``.

    Raises UserError if the model cannot be evaluated. The command checks all models before it loads
    any of them, because an evaluation can take hours.
    """
    weights = open_source(source)
    config = weights.architecture
    prompts = prompt_format(weights, options.tokenizer)
    if options.chat_template and prompts.template is None:
        raise UserError(f"{label} has no chat template; evaluate it without --chat-template.")
    if options.conversations and prompts.template is None:
        raise UserError(
            f"{label} cannot answer conversations: its tokenizer has no chat template and no "
            "chat tokens; name a model that was trained on chats."
        )
    data = weights.data_config if isinstance(weights, RunFolder) else None
    return ModelSpec(source, config, prompts, data.sequence_length if data else None)


def scoring_window(specs: Mapping[str, ModelSpec], heldout_of: DataConfig | None) -> int:
    """Return the maximum number of tokens per window in which documents are scored.

    The window is the same for all models, because a longer window lowers the bits per byte. It is
    the smallest sequence length of the models that are runs and of ``heldout_of``, the section
    that names the documents. Training measures held-out text with the same windows. Without any of
    them, the window is ``MAX_WINDOW``. It is never longer than the context of a model.
    """
    runs = [spec.sequence_length for spec in specs.values() if spec.sequence_length]
    if heldout_of:
        runs.append(heldout_of.sequence_length)
    contexts = (spec.config.context_length for spec in specs.values())
    return min(min(runs, default=MAX_WINDOW), *contexts)


def load_model(spec: ModelSpec, folder: Path) -> LoadedModel:
    """Load the weights of a model onto all devices."""
    mesh = decoder_mesh(spec.config)
    identity = model_settings(spec)
    decoder = load_decoder(spec.source, spec.config, mesh, identity["dtype"])
    return LoadedModel(folder, decoder, spec.prompts, mesh, identity)


def model_settings(spec: ModelSpec) -> dict[str, str]:
    """Return the settings that scores depend on: the dtype, and hashes of weights and tokenizer."""
    return {
        "model": model_identity(spec.source, spec.config, 0)[:16],
        "tokenizer": spec.prompts.tokenizer.fingerprint[:16],
        "dtype": "float32" if jax.default_backend() == "cpu" else "bfloat16",
    }
