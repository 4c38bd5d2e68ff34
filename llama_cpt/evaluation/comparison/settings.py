"""Whether models were asked alike: what their scores' settings say."""

from collections.abc import Sequence
import json
from pathlib import Path

from llama_cpt.evaluation.scores import SETTINGS

OF_THE_MODEL = ("model", "tokenizer", "dtype")
"""Settings in which models may differ."""


def shots_of(folders: Sequence[str]) -> dict[str, int]:
    """Worked examples before each question, by task, of the first model that says."""
    found: dict[str, int] = {}
    for file in (f for folder in folders for f in sorted(Path(folder).glob(f"*{SETTINGS}"))):
        settings = json.loads(file.read_text("utf-8"))
        if "shots" in settings:
            found.setdefault(file.name.removesuffix(SETTINGS), settings["shots"])
    return found


def setting_differences(folders: Sequence[str]) -> list[str]:
    """A sentence for each task that a model was not asked as the first model that has it."""
    first: dict[str, tuple[str, dict]] = {}
    told = []
    for folder in map(Path, folders):
        for file in sorted(folder.glob(f"*{SETTINGS}")):
            task, settings = file.name.removesuffix(SETTINGS), json.loads(file.read_text("utf-8"))
            name, before = first.setdefault(task, (folder.name, settings))
            names = sorted(set(before | settings) - set(OF_THE_MODEL))
            changed = [name for name in names if before.get(name) != settings.get(name)]
            if changed:
                told.append(
                    f"{task}: {folder.name} was not asked as {name} was ({', '.join(changed)} "
                    "differ): other texts, worked examples or a chat template. The difference may "
                    "be theirs."
                )
    return told
