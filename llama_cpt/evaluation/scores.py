"""What a model scored on each example: ``DIR/MODEL/TASK.jsonl``, a line an example, appended.

``DIR/MODEL/TASK.settings.json`` says of what the scores are: a model, a task and settings. Scores
of others in the same place are a mistake, not a continuation.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from etils import epath

from llama_cpt.config.fields import from_dict
from llama_cpt.runtime.distributed import allgather_strings, run_on_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.jsonl import append_lines, read_lines

BITS_PER_BYTE = "bits_per_byte"
"""The metric of held-out text; less is better."""
JUDGE_FOLDER = "conversations"
"""Folder of conversations and judgements, next to the folders of the models."""
LINES, SETTINGS = ".jsonl", ".settings.json"


@dataclass(frozen=True)
class ExampleScore:
    """One example, by the task's first metric."""

    task: str
    """As it was asked for: ``cmmlu``; the name of the file."""
    group: str
    """Within the task: a subject, a held-out corpus; empty where the task is whole."""
    id: str
    """Of the example in its group, the same for every model."""
    metric: str
    score: float
    """Of ``bits_per_byte``, sums of ``nats`` and of ``bytes`` are compared instead."""
    nats: float | None = None
    bytes: int | None = None
    """Of the source text in UTF-8."""
    chance: float | None = None
    """The score of a guess, where choices are offered."""
    less_is_better: bool = False
    """Of a metric that counts errors; that of bits per byte goes without saying."""
    detail: dict = field(default_factory=dict)
    """Other metrics, log-likelihoods, what was generated; ``cut`` where the beginning was lost."""

    @property
    def key(self) -> tuple[str, str]:
        """What tells the examples of a task apart."""
        return self.group, self.id


def read_scores(folder: str) -> dict[str, list[ExampleScore]]:
    """The scores in a model's ``folder``, by task, each example once, in the file's order.

    Raises UserError, naming the line, for what is no score.
    """
    files = sorted(Path(folder).glob(f"*{LINES}"))
    if not files:
        raise UserError(f"{folder} holds no scores: `python -m llama_cpt.evaluate` writes them.")
    return {file.name.removesuffix(LINES): read_task(file) for file in files}


def read_task(file: Path) -> list[ExampleScore]:
    """The scores of one task; the half line that a killed evaluation left is no score."""
    found: dict[tuple[str, str], ExampleScore] = {}
    for score in read_lines(file, partial(from_dict, ExampleScore)):
        found.setdefault(score.key, score)
    return list(found.values())


def append_scores(file: Path, scores: Iterable[ExampleScore]) -> None:
    """Append ``scores`` to ``file``, on disk when this returns; call ``start_task`` first."""
    if rows := [_plain(score) for score in scores]:
        append_lines(file, rows)


def start_task(folder: Path, task: str, settings: Mapping[str, Any]) -> list[ExampleScore]:
    """The scores of ``task`` that are there from before; its settings are written or compared.

    Raises UserError where they are of another model, task or setting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task}{SETTINGS}"
    asked = json.loads(json.dumps(settings))
    there = json.loads(file.read_text("utf-8")) if file.exists() else asked
    changed = sorted(n for n in asked | there if asked.get(n) != there.get(n))
    if changed:
        told = ", ".join(f"{n} was {there.get(n)!r}, is {asked.get(n)!r}" for n in changed)
        raise UserError(
            f"{folder / task}{LINES} holds scores of something else: {told}. Set another output "
            "folder, or delete that file and its settings."
        )
    if not file.exists():
        _write_settings(file, asked)
    return read_task(folder / f"{task}{LINES}")


def unscored(
    keys: Sequence[tuple[str, str]], folder: Path, task: str, settings: Mapping[str, Any]
) -> list[int]:
    """Numbers of the examples ``keys`` without a score of ``task``, as the first process sees it.

    Raises UserError where the processes are not at the same examples, and as ``start_task`` does.
    """
    asked = hashlib.sha256(json.dumps([keys, settings]).encode()).hexdigest()
    if len(set(allgather_strings(asked, "what is scored"))) > 1:
        raise UserError(
            f"{task}: the processes read different models or examples; put the same files in the "
            "same place on every host."
        )

    def known() -> str:
        done = {score.key for score in start_task(folder, task, settings)}
        return "".join("1" if key in done else "0" for key in keys)

    scored = run_on_primary(known, "what is known")
    return [number for number, one in enumerate(scored) if one == "0"]


def write_task(
    folder: Path, task: str, scores: Iterable[ExampleScore], settings: Mapping[str, Any]
) -> None:
    """Scores that were made of others, with their settings; what was there is replaced."""
    rows = (json.dumps(_plain(score), ensure_ascii=False) + "\n" for score in scores)
    write_atomic(epath.Path(folder / f"{task}{LINES}"), "".join(rows).encode())
    _write_settings(folder / f"{task}{SETTINGS}", settings)


def mean_score(scores: Sequence[ExampleScore]) -> float:
    """Of one metric: the mean, or bits per byte of all the text together."""
    if scores[0].metric == BITS_PER_BYTE:
        return bits_per_byte(scores)
    return sum(score.score for score in scores) / len(scores)


def bits_per_byte(scores: Sequence[ExampleScore]) -> float:
    """Of all the text together: the sum of nats over the sum of bytes, in bits."""
    nats = sum(score.nats for score in scores)
    return nats / math.log(2) / sum(score.bytes for score in scores)


def _write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    content = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
    write_atomic(epath.Path(file), content.encode())


def _plain(score: ExampleScore) -> dict[str, Any]:
    said = asdict(score).items()
    return {name: value for name, value in said if value is not False and value not in (None, {})}
