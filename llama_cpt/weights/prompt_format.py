"""The prompt format of a model: its tokenizer, chat template, stop tokens and generation settings.

``chat``, ``evaluate`` and ``convert`` obtain the format here, so all of them use the tokenizer and
the template with which a run was trained.
"""

from dataclasses import dataclass
import hashlib
import json
from typing import Any

from etils import epath

from llama_cpt.data.chat.template import ChatTemplate, answer_end_ids, find_chat_template
from llama_cpt.data.tokenizer.base import TOKENIZER_OPTION, Tokenizer
from llama_cpt.data.tokenizer.document_tokens import DocumentTokens, document_tokens
from llama_cpt.data.tokenizer.settings import REMEDY
from llama_cpt.data.tokenizer.tokenizer import load_tokenizer
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.weights.provenance import find_origin
from llama_cpt.weights.source import HfFolder, RunFolder

GENERATION_FILE = "generation_config.json"
MAX_ID = 1 << 31


@dataclass(frozen=True)
class PromptFormat:
    """The settings that determine the prompts of a model and the ends of its answers."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    """The chat template; None for a base model."""
    document_tokens: DocumentTokens
    """The tokens before and after documents in training."""
    generation: dict[str, Any]
    """The content of ``generation_config.json`` of the model or, for a run, of its base model."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer.

        They are the template's end-of-turn token, EOS, and the ``eos_token_id`` of ``generation``.
        """
        return answer_end_ids(self.tokenizer, self.template, eos_ids(self.generation))

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of everything that determines the tokens of prompts and the ends of answers."""
        template = self.template.fingerprint if self.template else ""
        identity = [self.tokenizer.fingerprint, template, self.stop_ids]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def prompt_format(source: HfFolder | RunFolder, tokenizer: str = "") -> PromptFormat:
    """Return the prompt format of the model at ``source``.

    ``tokenizer`` is the path of a tokenizer that replaces the model's own. Raises UserError if the
    tokenizer or the chat template differs from the tokenizer or the template with which a run was
    trained, or if the vocabulary does not fit the model.
    """
    loaded = load_tokenizer(tokenizer or source.tokenizer)
    loaded.require_size(source.architecture.vocab_size)
    if isinstance(source, HfFolder):
        template = find_chat_template(loaded)
        return PromptFormat(
            loaded, template, document_tokens(loaded, None), generation_settings(source)
        )
    data = source.data_config
    recorded = source.metadata.get("prompt_format") or {}
    known = recorded.get("tokenizer") or _corpus_tokenizer(source.metadata)
    if known not in (None, loaded.fingerprint, loaded.content_digest):
        raise UserError(
            f"{loaded.path} is not the tokenizer with which {source.path} was trained: its "
            "vocabulary or its special tokens differ; restore the run's tokenizer, or name it "
            f"{TOKENIZER_OPTION}."
        )
    choice = data.chat.template if data and data.chat else "auto"
    template = find_chat_template(loaded, choice)
    trained = recorded.get("template")
    if trained and (template is None or template.fingerprint != trained):
        raise UserError(
            f"the chat template of {loaded.path} is not the template with which {source.path} was "
            "trained; restore the template, or name the run's tokenizer "
            f"{TOKENIZER_OPTION}."
        )
    around = document_tokens(loaded, data.document_tokens if data else None)
    return PromptFormat(loaded, template, around, generation_settings(source))


def generation_settings(source: HfFolder | RunFolder) -> dict[str, Any]:
    """Return the content of ``generation_config.json`` of a model or of the base model of a run.

    A run stores this content in its checkpoints, so the base model is not needed later. For
    checkpoints of earlier versions, the result is empty if the base model is not found.
    """
    if isinstance(source, HfFolder):
        return _read_generation(epath.Path(source.folder(weights=False)))
    recorded = (source.metadata.get("prompt_format") or {}).get("generation")
    if isinstance(recorded, dict):
        return recorded
    try:
        origin = find_origin(source.path)
        same = origin.config().get("vocab_size") == source.architecture.vocab_size
    except UserError:
        return {}
    return _read_generation(epath.Path(origin.folder)) if origin.folder and same else {}


def eos_ids(values: dict[str, Any]) -> list[int]:
    """Return ``eos_token_id`` of a ``transformers`` config as a list of ids.

    The field is an id, a list of ids or null. Some configs contain -1 in place of null.
    """
    found = values.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return [one for one in ids if type(one) is int and one >= 0]


def _corpus_tokenizer(metadata: dict[str, Any]) -> str | None:
    """Return the tokenizer's fingerprint, which each corpus fingerprint in ``metadata`` contains.

    Checkpoints of earlier versions store the fingerprint of the tokenizer only there.
    """
    groups = metadata.get("fingerprints") or {}
    for group in ("data", "heldout"):
        for name, fingerprint in (groups.get(group) or {}).items():
            if name != "reference model":
                return str(fingerprint).split()[0]
    return None


def _read_generation(folder: epath.Path) -> dict[str, Any]:
    """Return the generation settings in a Hugging Face folder.

    If ``generation_config.json`` does not exist or sets no EOS, ``config.json`` sets EOS.
    """
    file = folder / GENERATION_FILE
    values = read_json_object(str(file), REMEDY) if file.exists() else {}
    _check_eos(values, str(file))
    if not eos_ids(values) and (folder / "config.json").exists():
        config = read_json_object(f"{folder}/config.json", REMEDY)
        _check_eos(config, f"{folder}/config.json")
        values |= {"eos_token_id": eos_ids(config)}
    return values


def _check_eos(values: dict[str, Any], file: str) -> None:
    """Raise UserError if ``eos_token_id`` is not an id, a list of ids or null.

    Without this check, an invalid field would be ignored, and answers would not end.
    """
    found = values.get("eos_token_id")
    for one in found if isinstance(found, list) else [found]:
        if one is not None and not (type(one) is int and -1 <= one < MAX_ID):
            raise UserError(
                f"{file}: eos_token_id={found!r} must be the id of a token, a list of ids or null; "
                "correct the file."
            )
