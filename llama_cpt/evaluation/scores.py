"""Scores of a model on each example: ``DIR/MODEL/TASK.jsonl``, one line per example, appended.

``DIR/MODEL/TASK.settings.json`` has the model, task and settings of the scores. An evaluation
resumes only if they are the same; other scores in the same file are an error.
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
"""The metric of held-out text, of which less is better."""
JUDGE_FOLDER = "conversations"
"""Folder of conversations and judgements, next to the folders of the models."""
LINES, SETTINGS = ".jsonl", ".settings.json"


@dataclass(frozen=True)
class ExampleScore:
    """The score of one example by the first metric of its task."""

    task: str
    """Name of the task, as in ``--tasks``, and of the file: ``cmmlu``."""
    group: str
    """Subject or held-out corpus; empty if the task has no groups."""
    id: str
    """Identifier of the example in its group, the same for every model."""
    metric: str
    score: float
    """Value of the metric; of ``bits_per_byte``, ``nats`` and ``bytes`` are summed instead."""
    nats: float | None = None
    bytes: int | None = None
    """Size of the source text in UTF-8."""
    chance: float | None = None
    """Expected score of a guess, if the task has choices."""
    less_is_better: bool = False
    """Whether less is better; not set for bits per byte, of which it is known."""
    detail: dict = field(default_factory=dict)
    """Other metrics, log-likelihoods or generated text; ``cut`` if the prompt was truncated."""

    @property
    def key(self) -> tuple[str, str]:
        """Key of the example in its task."""
        return self.group, self.id


def read_scores(folder: str) -> dict[str, list[ExampleScore]]:
    """Return the scores in a model's ``folder`` by task, each example once, in file order.

    Raises UserError, with the line number, for a line that is not a score.
    """
    files = sorted(Path(folder).glob(f"*{LINES}"))
    if not files:
        raise UserError(f"{folder} has no scores; write them with `python -m llama_cpt.evaluate`.")
    return {file.name.removesuffix(LINES): read_task(file) for file in files}


def read_task(file: Path) -> list[ExampleScore]:
    """Return the scores of one task; an incomplete last line is ignored."""
    found: dict[tuple[str, str], ExampleScore] = {}
    for score in read_lines(file, partial(from_dict, ExampleScore)):
        found.setdefault(score.key, score)
    return list(found.values())


def append_scores(file: Path, scores: Iterable[ExampleScore]) -> None:
    """Append ``scores`` to ``file``, on disk when this returns; call ``start_task`` first."""
    if rows := [_to_json(score) for score in scores]:
        append_lines(file, rows)


def start_task(folder: Path, task: str, settings: Mapping[str, Any]) -> list[ExampleScore]:
    """Return the existing scores of ``task``; write its settings, or compare them.

    Raises UserError if the existing scores are of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task}{SETTINGS}"
    # Through JSON, so that tuples compare equal to the lists in the file.
    new = json.loads(json.dumps(settings))
    old = json.loads(file.read_text("utf-8")) if file.exists() else new
    changed = sorted(n for n in new | old if new.get(n) != old.get(n))
    if changed:
        differences = ", ".join(f"{n} was {old.get(n)!r}, is {new.get(n)!r}" for n in changed)
        raise UserError(
            f"{folder / task}{LINES} has scores with other settings: {differences}. Set another "
            "output folder, or delete that file and its settings."
        )
    if not file.exists():
        _write_settings(file, new)
    return read_task(folder / f"{task}{LINES}")


def unscored(
    keys: Sequence[tuple[str, str]], folder: Path, task: str, settings: Mapping[str, Any]
) -> list[int]:
    """Return the indices of the examples ``keys`` without a score of ``task``.

    Only the primary process reads the folder. Raises UserError if the processes have different
    examples or settings, and as ``start_task`` does.
    """
    digest = hashlib.sha256(json.dumps([keys, settings]).encode()).hexdigest()
    if len(set(allgather_strings(digest, "examples to score"))) > 1:
        raise UserError(
            f"{task}: the processes read different models or examples; put the same files at the "
            "same path on every host."
        )

    def scored_flags() -> str:
        done = {score.key for score in start_task(folder, task, settings)}
        return "".join("1" if key in done else "0" for key in keys)

    scored = run_on_primary(scored_flags, "existing scores")
    return [number for number, one in enumerate(scored) if one == "0"]


def write_task(
    folder: Path, task: str, scores: Iterable[ExampleScore], settings: Mapping[str, Any]
) -> None:
    """Replace the scores of a task, with their settings, by ``scores``."""
    rows = (json.dumps(_to_json(score), ensure_ascii=False) + "\n" for score in scores)
    write_atomic(epath.Path(folder / f"{task}{LINES}"), "".join(rows).encode())
    _write_settings(folder / f"{task}{SETTINGS}", settings)


def mean_score(scores: Sequence[ExampleScore]) -> float:
    """Return the mean of scores of one metric, or the bits per byte of all their text."""
    if scores[0].metric == BITS_PER_BYTE:
        return bits_per_byte(scores)
    return sum(score.score for score in scores) / len(scores)


def bits_per_byte(scores: Sequence[ExampleScore]) -> float:
    """Return bits per byte of all the text: the sum of nats over the sum of bytes, in bits."""
    nats = sum(score.nats for score in scores)
    return nats / math.log(2) / sum(score.bytes for score in scores)


def _write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    content = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
    write_atomic(epath.Path(file), content.encode())


def _to_json(score: ExampleScore) -> dict[str, Any]:
    """Return a score as JSON values, without the fields that have their default."""
    fields = asdict(score).items()
    return {name: value for name, value in fields if value is not False and value not in (None, {})}
