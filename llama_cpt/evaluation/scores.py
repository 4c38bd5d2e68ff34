"""Scores of a model: ``DIR/MODEL/TASK.jsonl`` contains one line per example.

``DIR/MODEL/TASK.settings.json`` contains the settings of the evaluation, including the model. New
scores are appended only if the settings have not changed; otherwise ``start_task`` raises
UserError. ``DIR/MODEL/summary.json`` contains the scores over all examples of each task.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
import hashlib
import json
import math
from pathlib import Path
import time
from typing import Any

from etils import epath

from llama_cpt.config.fields import from_dict
from llama_cpt.evaluation.tasks.scoring import LEAST_PARSEABLE
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.distributed import allgather_strings, run_on_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.jsonl import append_lines, read_lines
from llama_cpt.runtime.shown_command import command_line

BITS_PER_BYTE = "bits_per_byte"
"""Name of the metric for held-out text; lower values are better."""
RIGHT_LANGUAGE, RECALLED = "right_language", "recalled"
"""Names of the metrics of the chat suite for the language of an answer and for long context."""
ROW_PER_GROUP = (BITS_PER_BYTE, RIGHT_LANGUAGE, RECALLED)
"""Metrics for which a comparison has a row for each group of a task."""
JUDGE_FOLDER = "conversations"
"""Name of the folder of conversations and judgments, next to the folders of the models."""
KEEP_SECONDS = 2.0
"""Interval in seconds at which new scores are appended to the file of scores."""
LINES, SETTINGS = ".jsonl", ".settings.json"
SUMMARY = "summary.json"
PARSEABLE_METRICS = ("parseable", "percent_parseable")
"""Names of the metric for parseable answers in this package and in lm-evaluation-harness."""


@dataclass(frozen=True)
class ExampleScore:
    """The score of a model on one example, by one metric of the task."""

    task: str
    """Name of the task, as in ``--tasks`` and in the file name, for example ``cmmlu``."""
    group: str
    """Subject or held-out corpus; empty if the task has no groups."""
    id: str
    """Identifier of the example in its group; it does not depend on the model."""
    metric: str
    score: float
    """Value of the metric on this example."""
    nats: float | None = None
    """Negative log-likelihood of the text; set only for the metric ``bits_per_byte``."""
    bytes: int | None = None
    """Number of UTF-8 bytes of the text; set only for the metric ``bits_per_byte``."""
    chance: float | None = None
    """Expected score of a random guess; None if the task has no answer options."""
    less_is_better: bool = False
    """True if lower scores are better. The field is not set for the metric ``bits_per_byte``."""
    detail: dict[str, Any] = field(default_factory=dict)
    """Additional values, such as other metrics, log-likelihoods or generated text.

    The entry ``cut`` is True if the prompt was truncated.
    """

    @property
    def key(self) -> tuple[str, str]:
        """Group and identifier, which together are unique in a task."""
        return self.group, self.id


def read_scores(folder: str) -> dict[str, list[ExampleScore]]:
    """Return the scores in a model's ``folder``, by task.

    The scores of a task are in file order, with at most one score per example. Raises UserError if
    the folder contains no scores or if a line is not a score.
    """
    files = sorted(Path(folder).glob(f"*{LINES}"))
    if not files:
        raise UserError(f"{folder} has no scores; write them with `{command_line('evaluate')}`.")
    return {file.name.removesuffix(LINES): read_task(file) for file in files}


def read_task(file: Path) -> list[ExampleScore]:
    """Return the first score of each example in ``file``, in file order.

    An incomplete last line is ignored.
    """
    found: dict[tuple[str, str], ExampleScore] = {}
    for score in read_lines(file, partial(from_dict, ExampleScore)):
        found.setdefault(score.key, score)
    return list(found.values())


def append_scores(file: Path, scores: Iterable[ExampleScore]) -> None:
    """Append ``scores`` to ``file`` and sync the file to disk; call ``start_task`` first."""
    if rows := [_to_json(score) for score in scores]:
        append_lines(file, rows)


class ScoreWriter:
    """Context manager that appends added scores to ``file``; call ``start_task`` first.

    The scores are appended every ``KEEP_SECONDS`` seconds and when the context ends.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._waiting: list[ExampleScore] = []
        self._written = time.monotonic()

    def __enter__(self) -> "ScoreWriter":
        """Return this object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Append the remaining scores, also after an error."""
        append_scores(self._file, self._waiting)

    def add(self, score: ExampleScore) -> None:
        """Add a score, and append all added scores if ``KEEP_SECONDS`` seconds have passed."""
        self._waiting.append(score)
        if time.monotonic() - self._written > KEEP_SECONDS:
            append_scores(self._file, self._waiting)
            self._waiting, self._written = [], time.monotonic()


def start_task(folder: Path, task: str, settings: Mapping[str, Any]) -> list[ExampleScore]:
    """Return the existing scores of ``task``, and write ``settings`` if the task has no settings.

    Raises UserError if the task's existing settings differ from ``settings``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{task}{SETTINGS}"
    # Convert through JSON, so that tuples compare equal to the lists in the file.
    new = json.loads(json.dumps(settings))
    old = read_settings(file) if file.exists() else new
    changed = sorted(n for n in new | old if new.get(n) != old.get(n))
    if changed:
        shown = {n: (repr(old.get(n))[:200], repr(new.get(n))[:200]) for n in changed}
        differences = ", ".join(f"{n} was {was}, is {now}" for n, (was, now) in shown.items())
        raise UserError(
            f"{folder / task}{LINES} has scores with different settings: {differences}. Set "
            f"another output folder, or delete the file and {file.name}."
        )
    if not file.exists():
        _write_settings(file, new)
    return read_task(folder / f"{task}{LINES}")


def read_settings(file: Path) -> dict[str, Any]:
    """Return the settings of a task; raise UserError if ``file`` is damaged."""
    return read_json_object(str(file), "delete it and the scores of the task to start over")


def unscored(
    keys: Sequence[tuple[str, str]], folder: Path, task: str, settings: Mapping[str, Any]
) -> list[int]:
    """Return the indices into ``keys`` of the examples that have no score for ``task`` yet.

    Only the primary process reads the folder. Raises UserError if the processes have different
    examples or settings, or if existing scores were computed with different settings.
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
    """Replace all scores and the settings of a task."""
    rows = (json.dumps(_to_json(score), ensure_ascii=False) + "\n" for score in scores)
    write_atomic(epath.Path(folder / f"{task}{LINES}"), "".join(rows).encode())
    _write_settings(folder / f"{task}{SETTINGS}", settings)


def mean_score(scores: Sequence[ExampleScore]) -> float:
    """Return the mean of ``scores``. For bits per byte, the mean is weighted by bytes."""
    if scores[0].metric == BITS_PER_BYTE:
        return bits_per_byte(scores)
    return sum(score.score for score in scores) / len(scores)


def bits_per_byte(scores: Sequence[ExampleScore]) -> float:
    """Return the bits per byte of all texts together: total nats / ln 2 / total bytes."""
    nats = [score.nats for score in scores if score.nats is not None]
    sizes = [score.bytes for score in scores if score.bytes is not None]
    assert len(nats) == len(sizes) == len(scores), "bits per byte need nats and bytes"
    return sum(nats) / math.log(2) / sum(sizes)


def _write_settings(file: Path, settings: Mapping[str, Any]) -> None:
    content = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
    write_atomic(epath.Path(file), content.encode())


def _to_json(score: ExampleScore) -> dict[str, Any]:
    """Return a score as a JSON object, without the fields that have their default value."""
    fields = asdict(score).items()
    return {name: value for name, value in fields if value is not False and value not in (None, {})}


def write_summary(folder: Path) -> dict[str, Any]:
    """Write ``summary.json`` for all scores in a model's ``folder``, and return the summary."""
    tasks = {name: summary_of(scores) for name, scores in read_scores(str(folder)).items()}
    for name, values in tasks.items():
        file = folder / f"{name}{SETTINGS}"
        if window := read_settings(file).get("window") if file.exists() else None:
            values["window"] = window
    summary = {"model": folder.name, "tasks": tasks}
    content = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_atomic(epath.Path(folder / SUMMARY), content.encode())
    return summary


def summary_of(scores: Sequence[ExampleScore]) -> dict[str, Any]:
    """Return the score of one task over all examples and by group, as a JSON object."""
    groups: dict[str, list[ExampleScore]] = {}
    for score in scores:
        groups.setdefault(score.group, []).append(score)
    summary: dict[str, Any] = {"metric": scores[0].metric, "examples": len(scores)}
    by_group = {name: mean_score(of) for name, of in sorted(groups.items())}
    # Bits per byte of different languages are not comparable, so their mean has no meaning.
    if scores[0].metric != BITS_PER_BYTE:
        summary["score"] = mean_score(scores)
    if "" not in groups:
        summary["groups"] = by_group
    if scores[0].metric == "eqbench":
        summary |= _eq_bench(scores)
    if cut := sum(bool(score.detail.get("cut")) for score in scores):
        summary["cut"] = cut
    if all("characters" in score.detail for score in scores):
        summary["tokens_per_character"] = {
            name: _total(of, "tokens") / max(_total(of, "characters"), 1)
            for name, of in sorted(groups.items())
        }
    return summary


def _eq_bench(scores: Sequence[ExampleScore]) -> dict[str, Any]:
    """Return the share of parseable answers, and the score as the authors of EQ-Bench define it.

    This score is the mean over the parseable answers, or None if the share of parseable answers is
    less than ``LEAST_PARSEABLE``.
    """
    parseable = [
        score for score in scores if any(map(score.detail["metrics"].get, PARSEABLE_METRICS))
    ]
    share = len(parseable) / len(scores)
    published = mean_score(parseable) if share >= LEAST_PARSEABLE else None
    return {"parseable": share, "published_score": published}


def _total(scores: Sequence[ExampleScore], name: str) -> int:
    return sum(score.detail[name] for score in scores)
