"""Summary of a model's scores: one JSON file, and a table of several models."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from etils import epath

from llama_cpt.evaluation.scores import BITS_PER_BYTE, ExampleScore, mean_score, read_scores
from llama_cpt.evaluation.tasks.eq_bench import LEAST_PARSEABLE
from llama_cpt.runtime.files import write_atomic

FILE = "summary.json"
READ = ("parseable", "percent_parseable")
"""Metrics that tell whether an answer could be parsed: of this package's task, of the harness's."""


def write_summary(folder: Path) -> dict[str, Any]:
    """Summarize all scores in a model's ``folder``, write ``summary.json`` and return it."""
    tasks = {name: summary_of(scores) for name, scores in read_scores(str(folder)).items()}
    summary = {"model": folder.name, "tasks": tasks}
    content = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_atomic(epath.Path(folder / FILE), content.encode())
    return summary


def summary_of(scores: Sequence[ExampleScore]) -> dict[str, Any]:
    """Return the score of a task over all examples and by group, as JSON values."""
    groups: dict[str, list[ExampleScore]] = {}
    for score in scores:
        groups.setdefault(score.group, []).append(score)
    summary: dict[str, Any] = {"metric": scores[0].metric, "examples": len(scores)}
    by_group = {name: mean_score(of) for name, of in sorted(groups.items())}
    # A mean over languages has no meaning: their bits per byte do not compare.
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


def table(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return rows of text: a row per task, or per group if it has no score; a column per model."""
    rows = [("task", *(str(summary["model"]) for summary in summaries))]
    lines: dict[tuple[str, str], dict[str, float | None]] = {}
    for summary in summaries:
        for task, values in summary["tasks"].items():
            found = {"": values["score"]} if "score" in values else dict(values["groups"])
            for name, count in values.get("tokens_per_character", {}).items():
                found[f"{name} tokens per character"] = count
            if "published_score" in values:
                found["published"] = values["published_score"]
            for group, score in found.items():
                lines.setdefault((task, group), {})[summary["model"]] = score
    for (task, group), by_model in lines.items():
        scores = (by_model.get(str(summary["model"])) for summary in summaries)
        cells = ("-" if score is None else f"{score:.4f}" for score in scores)
        rows.append((f"{task} {group}".strip(), *cells))
    return rows


def _eq_bench(scores: Sequence[ExampleScore]) -> dict[str, Any]:
    """Return the score as published: the mean of the parseable answers, if they are enough."""
    parseable = [score for score in scores if any(map(score.detail["metrics"].get, READ))]
    share = len(parseable) / len(scores)
    published = mean_score(parseable) if share >= LEAST_PARSEABLE else None
    return {"parseable": share, "published_score": published}


def _total(scores: Sequence[ExampleScore], name: str) -> int:
    return sum(score.detail[name] for score in scores)
