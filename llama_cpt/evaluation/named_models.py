"""The models that a command names: checked together before any is loaded."""

import argparse
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
"""What else is written into the folder of scores."""


@dataclass(frozen=True)
class ModelSpec:
    """A model that was named; its weights are not loaded yet."""

    source: str
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate | None


@dataclass(frozen=True)
class LoadedModel:
    """A model to evaluate, its weights on the devices."""

    folder: Path
    """Where its scores go."""
    decoder: Decoder
    tokenizer: Tokenizer
    template: ChatTemplate | None
    mesh: Mesh
    identity: dict[str, str]
    """What its scores depend on."""


def parse_model_names(given: Sequence[str]) -> dict[str, str]:
    """Name -> place of each model; ``NAME=PLACE`` where the folder's own name will not do.

    Raises UserError for names that are no folders of scores, or not told apart.
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, place = one.partition("=")
        if not equals or "/" in name or Path(one).exists():
            name, place = Path(one).resolve().name, one
        if not (name and place) or name.startswith(".") or name in RESERVED_NAMES:
            raise UserError(
                f"{one}: NAME=FOLDER gives a model a name of its own, which is a folder's in "
                f"--output: not empty, not with a dot in front, not {' or '.join(RESERVED_NAMES)}."
            )
        if name in found:
            raise UserError(f"two models are called {name}: tell them apart as NAME={place}.")
        found[name] = place
    return found


def check_model(label: str, source: str, options: argparse.Namespace) -> ModelSpec:
    """Raises UserError for what would end the evaluation of this model, after hours of others."""
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
            f"{label} cannot take part in conversations: its tokenizer has no chat template and no "
            "tokens for one; name a model that was trained on chats."
        )
    return ModelSpec(source, config, tokenizer, template)


def load_model(given: ModelSpec, folder: Path) -> LoadedModel:
    """The weights on every device: heads apart as far as they go, the rest of the devices fsdp."""
    config = given.config
    mesh = make_mesh(MeshConfig(1, -1, math.gcd(jax.device_count(), config.num_kv_heads)))
    identity = model_settings(given)
    decoder = load_decoder(given.source, config, mesh, identity["dtype"])
    return LoadedModel(folder, decoder, given.tokenizer, given.template, mesh, identity)


def model_settings(given: ModelSpec) -> dict[str, str]:
    """What the scores of a model depend on."""
    return {
        "model": model_identity(given.source, given.config, 0)[:16],
        "tokenizer": given.tokenizer.fingerprint[:16],
        "dtype": "float32" if jax.default_backend() == "cpu" else "bfloat16",
    }
