"""The table of the chat suite: counts, shares and intervals for each part and model."""

from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from etils import epath

from llama_cpt.evaluation.chat_suite import tasks
from llama_cpt.evaluation.chat_suite.languages import EVERY_LINE
from llama_cpt.evaluation.exact_match import Accuracy
from llama_cpt.evaluation.scores import LINES, read_task
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.tables import aligned_table

FILE = "chat_suite.json"
"""Name of the file of results, next to the scores of a model."""
TITLES = {
    tasks.IFEVAL: "instructions followed (IFEval)",
    tasks.INSTRUCTIONS: "instructions followed",
    tasks.LANGUAGES: "answers in the language of the question",
    tasks.HARMFUL: "refused, harmful requests",
    tasks.HARMLESS: "refused, harmless requests (less is better)",
    tasks.RECALL: "needle recalled",
}
Part = tuple[str, str]
"""Title of a task, and the part of the task; the part is empty for the whole task."""


def suite_table(folders: Sequence[Path]) -> str:
    """Return the table for the models with scores in ``folders``, and write it as JSON.

    Each folder contains the scores of one model. The JSON file ``chat_suite.json`` in a folder
    contains the rows of its model.
    """
    by_model = {}
    for folder in folders:
        by_model[folder.name] = parts = dict(_parts(folder))
        rows = [_to_json(part, accuracy) for part, accuracy in parts.items()]
        content = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        write_atomic(epath.Path(folder / FILE), content.encode())
    order = dict.fromkeys(part for parts in by_model.values() for part in parts)
    order = sorted(order, key=lambda part: list(TITLES.values()).index(part[0]))
    table = [("chat suite", "", *by_model)]
    shown = ""
    for title, part in order:
        cells = (_cell(parts.get((title, part))) for parts in by_model.values())
        table.append(("" if title == shown else title, part or "all", *cells))
        shown = title
    return aligned_table(table, indent="")


def has_other_tasks(summary: Mapping[str, Any]) -> bool:
    """Return whether a model's summary contains tasks that do not belong to the suite."""
    return not set(summary["tasks"]) <= set(tasks.NAMES)


def _parts(folder: Path) -> Iterator[tuple[Part, Accuracy]]:
    """Yield each part of the suite with the number of examples and of scores of 1."""
    for task in tasks.NAMES:
        scores = read_task(folder / f"{task}{LINES}")
        if not scores:
            continue
        title = TITLES[task]
        values = [score.score for score in scores]
        yield (title, ""), _accuracy(values)
        groups = [score.group for score in scores]
        match task:
            case tasks.INSTRUCTIONS:
                kinds = [str(score.detail["kind"]) for score in scores]
                yield from _by(title, values, groups)
                yield from _by(title, values, kinds)
            case tasks.LANGUAGES:
                lines = [float(score.detail["metrics"][EVERY_LINE]) for score in scores]
                yield from _by(title, values, groups)
                yield (title, "all, every line"), _accuracy(lines)
                yield from _by(title, lines, groups, "{}, every line")
            case tasks.RECALL:
                depths = [float(score.detail["depth"]) for score in scores]
                yield from _by(title, values, [int(group) for group in groups], "{:,} tokens")
                yield from _by(title, values, depths, "depth {:.0%}")
            case _:
                # The number of refusals per language is too small for a row.
                pass


def _by(
    title: str, values: Sequence[float], keys: Sequence[Any], label: str = "{}"
) -> Iterator[tuple[Part, Accuracy]]:
    """Yield the accuracy of the values with each key, sorted by key; ``label`` formats a key."""
    groups: dict[Any, list[float]] = {}
    for key, value in zip(keys, values, strict=True):
        groups.setdefault(key, []).append(value)
    for key in sorted(groups):
        yield (title, label.format(key)), _accuracy(groups[key])


def _accuracy(values: Sequence[float]) -> Accuracy:
    return Accuracy(len(values), round(sum(values)), with_suffix=0, chance=0.0)


def _cell(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "not measured"
    low, high = accuracy.interval()
    return (
        f"{accuracy.correct} of {accuracy.questions} ({accuracy.share:.0%}; {low:.0%} to "
        f"{high:.0%})"
    )


def _to_json(part: Part, accuracy: Accuracy) -> dict[str, Any]:
    title, name = part
    return {
        "measure": title,
        "part": name or "all",
        "count": accuracy.correct,
        "examples": accuracy.questions,
        "share": accuracy.share,
        "interval_95": list(accuracy.interval()),
    }
