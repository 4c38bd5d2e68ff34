"""Provenance of a model: the base model of a chain of runs, and the base model's license files."""

from dataclasses import dataclass
import fnmatch
import json
from typing import Any

from etils import epath

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.weights.hub import HUB_NAME, resolve

LICENSE_FILES = ("LICENSE*", "USE_POLICY*", "NOTICE*")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
)
CONFIG_REMEDY = "restore it from a copy, or name the base model's folder (in convert to-hf: --base)"
ORIGIN_FILE = "origin.json"
"""The name of a file that ``convert from-hf`` writes next to its checkpoint. The file contains
``{"base": NAME}``, with the name of the converted model."""


@dataclass(frozen=True)
class Origin:
    """The base model of a chain of runs, in which each run continued from the run before it."""

    base: str
    """The base model's hub name or folder name; empty if the chain began with random weights."""
    folder: str | None
    """The folder with the base model's config, license and tokenizer; None if it was not found."""
    runs: tuple[str, ...] = ()
    """The names of all runs before the last run, earliest first."""

    def config(self) -> dict[str, Any]:
        """Return the base model's ``config.json``, or an empty dict if the file does not exist."""
        if self.folder is None or not (epath.Path(self.folder) / "config.json").exists():
            return {}
        return read_json_object(f"{self.folder}/config.json", CONFIG_REMEDY)


def find_origin(source: str) -> Origin:
    """Follow ``init_from`` from ``source``, a folder or hub name, to the base model.

    Only the ``config.json`` of each run is read, so the checkpoints of the runs are not needed.
    Raises UserError if a folder is missing or if the chain is a cycle.
    """
    runs: list[epath.Path] = []
    while source:
        folder = epath.Path(source).expanduser()
        if not folder.is_dir():
            return Origin(source, resolve(source, weights=False), _names_between(runs))
        if folder in runs:
            raise UserError(
                f"{folder}/config.json: init_from leads back to the same run; set init_from to the "
                "model that the run started from."
            )
        values = read_json_object(f"{folder}/config.json", CONFIG_REMEDY)
        if "init_from" not in values:
            return Origin(_base_name(folder), str(folder), _names_between(runs))
        runs.append(folder)
        started_from: Any = values["init_from"]
        if not isinstance(started_from, str):
            raise UserError(
                f"{folder}/config.json: init_from={repr(started_from)[:80]} must be a string; set "
                "it to the model that the run started from."
            )
        source = started_from
    return Origin("", None, _names_between(runs))


def write_origin(source: str, folder: epath.Path) -> None:
    """Write into ``folder`` an ORIGIN_FILE that names ``source`` as the base model."""
    base = source if HUB_NAME.fullmatch(source) else _base_name(epath.Path(source))
    (folder / ORIGIN_FILE).write_text(json.dumps({"base": base}) + "\n", encoding="utf-8")


def copy_files(folder: str, output: epath.Path, patterns: tuple[str, ...]) -> list[str]:
    """Copy the files in ``folder`` that match any pattern to ``output``; return their names."""
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
        remedy = "delete it, or set 'base' to the base model's name"
        base = read_json_object(f"{folder}/{ORIGIN_FILE}", remedy).get("base")
        if not isinstance(base, str):
            raise UserError(
                f"{folder}/{ORIGIN_FILE}: 'base' must be a string; set it to the base model's name."
            )
        return base
    return folder.name or str(folder)
