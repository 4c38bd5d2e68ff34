"""Checks that the models of a comparison were evaluated with the same settings."""

from collections.abc import Sequence
import json
from pathlib import Path

from llama_cpt.evaluation.scores import SETTINGS

MODEL_SETTINGS = ("model", "tokenizer", "dtype")
"""Settings that may differ between models."""


def shots_of(folders: Sequence[str]) -> dict[str, int]:
    """Return the worked examples per question by task, from the first model that has the task."""
    found: dict[str, int] = {}
    for file in (f for folder in folders for f in sorted(Path(folder).glob(f"*{SETTINGS}"))):
        settings = json.loads(file.read_text("utf-8"))
        if "shots" in settings:
            found.setdefault(file.name.removesuffix(SETTINGS), settings["shots"])
    return found


def setting_differences(folders: Sequence[str]) -> list[str]:
    """Return a sentence for each task whose settings differ from those of the first model."""
    first: dict[str, tuple[str, dict]] = {}
    sentences = []
    for folder in map(Path, folders):
        for file in sorted(folder.glob(f"*{SETTINGS}")):
            task, settings = file.name.removesuffix(SETTINGS), json.loads(file.read_text("utf-8"))
            name, before = first.setdefault(task, (folder.name, settings))
            names = sorted(set(before | settings) - set(MODEL_SETTINGS))
            changed = [name for name in names if before.get(name) != settings.get(name)]
            if changed:
                sentences.append(
                    f"{task}: {folder.name} and {name} were evaluated with different settings "
                    f"({', '.join(changed)}), which may explain their difference: other texts, "
                    "worked examples or chat template."
                )
    return sentences
