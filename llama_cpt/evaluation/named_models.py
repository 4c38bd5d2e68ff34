"""The models that a command names, all of them checked before any is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from pathlib import Path

import jax
from jax.sharding import Mesh

from llama_cpt.config.schema import MeshConfig, ModelConfig
from llama_cpt.data.chat.template import ChatTemplate
from llama_cpt.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from llama_cpt.evaluation.scores import JUDGE_FOLDER
from llama_cpt.generation.chat_session import find_chat_template
from llama_cpt.generation.decoder import Decoder
from llama_cpt.generation.load_decoder import load_decoder
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.training.reference import model_identity
from llama_cpt.weights.source import open_source

RESERVED_NAMES = (JUDGE_FOLDER, "report.md", "report.html", "differences.png", "languages.png")
"""Names in the output folder that are not folders of models."""


@dataclass(frozen=True)
class ModelOptions:
    """Requirements on every named model."""

    tokenizer: str = ""
    """Tokenizer to use instead of the model's own; empty uses the model's own."""
    chat_template: bool = False
    """Whether questions are asked in the model's chat template."""
    conversations: bool = False
    """Whether the model answers conversations, which needs a chat template."""


@dataclass(frozen=True)
class ModelSpec:
    """A named model that was checked; its weights are not loaded yet."""

    source: str
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None


@dataclass(frozen=True)
class LoadedModel:
    """A model to evaluate, with its weights on the devices."""

    folder: Path
    """The folder of its scores."""
    decoder: Decoder
    tokenizer: Tokenizer
    template: ChatTemplate | None
    mesh: Mesh
    identity: dict[str, str]
    """The settings that its scores depend on, as in ``model_settings``."""


def parse_model_names(arguments: Sequence[str]) -> dict[str, str]:
    """Return the source folder of each model by name.

    An argument is ``FOLDER``, whose last part is the name, or ``NAME=FOLDER``. Raises UserError for
    a name that cannot be a folder of scores or that two models share.
    """
    sources: dict[str, str] = {}
    for argument in arguments:
        name, equals, source = argument.partition("=")
        # A path may contain an equals sign itself.
        if not equals or "/" in name or Path(argument).exists():
            name, source = Path(argument).resolve().name, argument
        if not (name and source) or name.startswith(".") or name in RESERVED_NAMES:
            raise UserError(
                f"{argument}: the name cannot be a folder in --output; set another one with "
                f"NAME=FOLDER, not empty, without a leading dot, not {' or '.join(RESERVED_NAMES)}."
            )
        if name in sources:
            raise UserError(f"two models are named {name}: set another name with NAME={source}.")
        sources[name] = source
    return sources


def check_model(label: str, source: str, options: ModelOptions) -> ModelSpec:
    """Check that a model can be evaluated and return it without its weights.

    Raises UserError for anything that would otherwise end the evaluation after other models have
    run for hours.
    """
    weights = open_source(source)
    config = weights.architecture
    tokenizer = load_tokenizer(options.tokenizer or weights.tokenizer)
    tokenizer.require_size(config.vocab_size)
    template = find_chat_template(tokenizer)
    if options.chat_template and template is None:
        raise UserError(
            f"{label} has no chat template (a base model): evaluate it without --chat-template."
        )
    if options.conversations and template is None:
        raise UserError(
            f"{label} cannot answer conversations: its tokenizer has no chat template and no "
            "tokens for one; name a model that was trained on chats."
        )
    return ModelSpec(source, config, tokenizer, template)


def load_model(spec: ModelSpec, folder: Path) -> LoadedModel:
    """Load the weights of a model onto all devices.

    The ``tensor`` axis takes as many devices as divide the key-value heads, ``fsdp`` the others.
    """
    config = spec.config
    mesh = make_mesh(MeshConfig(1, -1, math.gcd(jax.device_count(), config.num_kv_heads)))
    identity = model_settings(spec)
    decoder = load_decoder(spec.source, config, mesh, identity["dtype"])
    return LoadedModel(folder, decoder, spec.tokenizer, spec.template, mesh, identity)


def model_settings(spec: ModelSpec) -> dict[str, str]:
    """Return the settings that the scores of a model depend on."""
    return {
        "model": model_identity(spec.source, spec.config, 0)[:16],
        "tokenizer": spec.tokenizer.fingerprint[:16],
        "dtype": "float32" if jax.default_backend() == "cpu" else "bfloat16",
    }
