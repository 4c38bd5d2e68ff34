"""Evaluation settings of models, and differences between these settings."""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

from llama_cpt.evaluation.scores import SETTINGS

MODEL_SETTINGS = ("model", "tokenizer", "dtype")
"""Settings that are expected to differ between models."""


def shots_of(folders: Sequence[str]) -> dict[str, int]:
    """Return the number of worked examples before each question, by task.

    The number is from the settings of the first model that has scores for the task.
    """
    found: dict[str, int] = {}
    for file in (f for folder in folders for f in sorted(Path(folder).glob(f"*{SETTINGS}"))):
        settings = json.loads(file.read_text("utf-8"))
        if "shots" in settings:
            found.setdefault(file.name.removesuffix(SETTINGS), settings["shots"])
    return found


def setting_differences(folders: Sequence[str]) -> list[str]:
    """Return a sentence for each model and task with settings that differ from the first model's.

    Here the first model of a task is the first model that has scores for the task. The settings in
    ``MODEL_SETTINGS`` are ignored.
    """
    first: dict[str, tuple[str, dict[str, Any]]] = {}
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
                    f"({', '.join(changed)}), which can explain a difference; use the same texts, "
                    "worked examples and chat template for both."
                )
    return sentences
