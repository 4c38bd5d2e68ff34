"""Where a model's weights came from first, and the files that go with them."""

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
"""What ``convert from-hf`` writes beside its checkpoint: ``{"base": SOURCE}``."""


@dataclass(frozen=True)
class Origin:
    """The first model of a line of runs, each of which started from the one before."""

    base: str
    """The hub name or the folder's name; empty where the line began with random weights."""
    folder: str | None
    """Where its config, licence and tokenizer lie, if they can be had."""
    runs: tuple[str, ...] = ()
    """Names of the runs between it and the one asked about, the earliest first."""

    def config(self) -> dict[str, Any]:
        """Its Hugging Face ``config.json``; empty where there is none."""
        if self.folder is None or not (epath.Path(self.folder) / "config.json").exists():
            return {}
        return read_json(f"{self.folder}/config.json")


def find_origin(source: str) -> Origin:
    """Follow ``init_from`` from ``source`` (a folder or hub name) to where it began."""
    places: list[epath.Path] = []
    while source:
        place = epath.Path(source).expanduser()
        if not place.is_dir():
            return Origin(source, resolve(source, weights=False), _between(places))
        if place in places:
            raise UserError(f"{place}/config.json: init_from leads back to itself.")
        values = read_json(f"{place}/config.json")
        if "init_from" not in values:
            return Origin(_base_name(place), str(place), _between(places))
        places.append(place)
        source = values["init_from"]
    return Origin("", None, _between(places))


def write_origin(source: str, folder: epath.Path) -> None:
    """Note in ``folder`` that its weights are those of ``source``."""
    base = source if HUB_NAME.fullmatch(source) else _base_name(epath.Path(source))
    (folder / ORIGIN_FILE).write_text(json.dumps({"base": base}) + "\n", encoding="utf-8")


def copy_files(folder: str, output: epath.Path, patterns: tuple[str, ...]) -> list[str]:
    """Copy the files of ``folder`` whose name fits one of ``patterns``; their names."""
    copied = []
    for file in sorted(epath.Path(folder).iterdir(), key=lambda path: path.name):
        fits = any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)
        if fits and not file.is_dir():
            (output / file.name).write_bytes(file.read_bytes())
            copied.append(file.name)
    return copied


def _between(places: list[epath.Path]) -> tuple[str, ...]:
    return tuple(place.name for place in reversed(places[1:]))


def _base_name(place: epath.Path) -> str:
    if (place / ORIGIN_FILE).exists():
        base = read_json(f"{place}/{ORIGIN_FILE}").get("base")
        if not isinstance(base, str):
            raise UserError(f"{place}/{ORIGIN_FILE}: names no base.")
        return base
    return place.name or str(place)
