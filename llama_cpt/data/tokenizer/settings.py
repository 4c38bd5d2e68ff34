"""The settings of a tokenizer in the Hugging Face files next to its vocabulary."""

from dataclasses import dataclass, field
from typing import Any

from etils import epath
import tokenizers

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
REMEDY = "copy the file again from the model's folder"
# The fields that name a single special token. Chat templates can use these names as variables.
TOKEN_FIELDS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class TokenizerSettings:
    """The content of ``tokenizer_config.json`` and the other files next to a vocabulary."""

    names: dict[str, str | None] = field(default_factory=dict)
    """The name of each special token in ``TOKEN_FIELDS`` that the files set; None for null."""
    others: tuple[str, ...] = ()
    """The names of further special tokens."""
    added: dict[int, tokenizers.AddedToken] = field(default_factory=dict)
    """The added tokens by id, from ``added_tokens_decoder``."""
    former_added: dict[str, int] = field(default_factory=dict)
    """The ids of added tokens by name, from ``added_tokens.json`` of old versions."""
    adds_bos: bool | None = None
    """The value of ``add_bos_token``; None if the files do not set it."""


def read_settings(vocabulary: epath.Path) -> TokenizerSettings:
    """Return the settings in the folder of the file ``vocabulary``.

    ``tokenizer_config.json`` takes precedence, as in ``transformers``. Raises UserError if a file
    or a field is not valid.
    """
    files = [vocabulary.with_name(name) for name in (MAP_FILE, CONFIG_FILE)]
    names: dict[str, str | None] = {}
    others: list[str] = []
    added: dict[int, tokenizers.AddedToken] = {}
    adds_bos = None
    for file in files:
        if not file.exists():
            continue
        values = read_json_object(str(file), REMEDY)
        own = [key for key in values if key.endswith("_token") and isinstance(values[key], str)]
        names |= {
            key: _name(values[key], key, file) for key in (*TOKEN_FIELDS, *own) if key in values
        }
        if isinstance(extra := values.get("extra_special_tokens"), dict):
            names |= {key: _name(extra[key], key, file) for key in extra}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            others += _names(values.get(key), key, file)
        added |= _added_tokens(values.get("added_tokens_decoder"), file)
        adds_bos = values.get("add_bos_token", adds_bos)
        if not isinstance(adds_bos, bool | None):
            raise UserError(f"{file}: add_bos_token must be true, false or null; {REMEDY}.")
    file = vocabulary.with_name(ADDED_FILE)
    former = {} if added or not file.exists() else read_json_object(str(file), REMEDY)
    if not all(type(one) is int for one in former.values()):
        raise UserError(f"{file} must map tokens to ids; {REMEDY}.")
    return TokenizerSettings(names, tuple(dict.fromkeys(others)), added, former, adds_bos)


def _name(value: Any, key: str, file: epath.Path) -> str | None:
    """Return the name of a token that is given as a string, an object or null."""
    name = value.get("content") if isinstance(value, dict) else value
    if isinstance(name, str | None) and (name or not isinstance(value, dict)):
        return name or None
    raise UserError(f"{file}: {key} must be the name of a token; {REMEDY}.")


def _names(values: Any, key: str, file: epath.Path) -> list[str]:
    """Return the names in a list of tokens, or in an object whose values are tokens."""
    listed = list(values.values()) if isinstance(values, dict) else values
    if not isinstance(listed, list | None):
        raise UserError(f"{file}: {key} must be a list of tokens; {REMEDY}.")
    return [name for value in listed or () if (name := _name(value, key, file))]


def _added_tokens(values: Any, file: epath.Path) -> dict[int, tokenizers.AddedToken]:
    """Return the tokens of ``added_tokens_decoder``, by id in ascending order."""
    try:
        return {
            int(one): tokenizers.AddedToken(
                token["content"],
                single_word=bool(token.get("single_word", False)),
                lstrip=bool(token.get("lstrip", False)),
                rstrip=bool(token.get("rstrip", False)),
                normalized=bool(token.get("normalized", not token.get("special", False))),
                special=bool(token.get("special", False)),
            )
            for one, token in sorted((values or {}).items(), key=lambda pair: int(pair[0]))
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{file}: added_tokens_decoder must map ids to tokens with 'content'; {REMEDY}."
        ) from None
