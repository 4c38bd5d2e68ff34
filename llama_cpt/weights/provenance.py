"""Provenance of a model: the base model of a line of runs, and the files that belong to it."""

from dataclasses import dataclass
import fnmatch
import json
from typing import Any

from etils import epath

from llama_cpt.runtime.errors import UserError
from llama_cpt.weights.hub import HUB_NAME, resolve
from llama_cpt.weights.safetensors import read_json

LICENSE_FILES = ("LICENSE*", "USE_POLICY*", "NOTICE*")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
)
ORIGIN_FILE = "origin.json"
"""File that ``convert from-hf`` writes next to its checkpoint: ``{"base": SOURCE}``."""


@dataclass(frozen=True)
class Origin:
    """The base model of a line of runs, each of which started from the previous one."""

    base: str
    """The hub name or the folder's name; empty if the line began with random weights."""
    folder: str | None
    """Folder of its config, license and tokenizer, if available."""
    runs: tuple[str, ...] = ()
    """Names of the runs between the base model and the given one, earliest first."""

    def config(self) -> dict[str, Any]:
        """Return its Hugging Face ``config.json``; empty if there is none."""
        if self.folder is None or not (epath.Path(self.folder) / "config.json").exists():
            return {}
        return read_json(f"{self.folder}/config.json")


def find_origin(source: str) -> Origin:
    """Follow ``init_from`` from ``source`` (a folder or hub name) to the base model.

    Reads only ``config.json`` of each run, so that runs whose checkpoints were deleted can still be
    followed. Raises UserError if a folder is missing or the line is a cycle.
    """
    runs: list[epath.Path] = []
    while source:
        folder = epath.Path(source).expanduser()
        if not folder.is_dir():
            return Origin(source, resolve(source, weights=False), _names_between(runs))
        if folder in runs:
            raise UserError(
                f"{folder}/config.json: init_from leads back to the same run; correct it."
            )
        values = read_json(f"{folder}/config.json")
        if "init_from" not in values:
            return Origin(_base_name(folder), str(folder), _names_between(runs))
        runs.append(folder)
        source = values["init_from"]
    return Origin("", None, _names_between(runs))


def write_origin(source: str, folder: epath.Path) -> None:
    """Record in ``folder`` that its weights are those of ``source``."""
    base = source if HUB_NAME.fullmatch(source) else _base_name(epath.Path(source))
    (folder / ORIGIN_FILE).write_text(json.dumps({"base": base}) + "\n", encoding="utf-8")


def copy_files(folder: str, output: epath.Path, patterns: tuple[str, ...]) -> list[str]:
    """Copy the files of ``folder`` whose names match one of ``patterns``; return the names."""
    copied = []
    for file in sorted(epath.Path(folder).iterdir(), key=lambda path: path.name):
        matches = any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)
        if matches and not file.is_dir():
            (output / file.name).write_bytes(file.read_bytes())
            copied.append(file.name)
    return copied


def _names_between(runs: list[epath.Path]) -> tuple[str, ...]:
    return tuple(folder.name for folder in reversed(runs[1:]))


def _base_name(folder: epath.Path) -> str:
    if (folder / ORIGIN_FILE).exists():
        base = read_json(f"{folder}/{ORIGIN_FILE}").get("base")
        if not isinstance(base, str):
            raise UserError(
                f"{folder}/{ORIGIN_FILE}: has no 'base'; set it to the base model's name."
            )
        return base
    return folder.name or str(folder)
