"""What a model scored, in one file and in one table."""

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
"""Whether an answer could be read: in our task, in the harness's."""


def write_summary(folder: Path) -> dict[str, Any]:
    """``summary.json`` of all scores in a model's ``folder``."""
    tasks = {name: summary_of(scores) for name, scores in read_scores(str(folder)).items()}
    summary = {"model": folder.name, "tasks": tasks}
    content = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_atomic(epath.Path(folder / FILE), content.encode())
    return summary


def summary_of(scores: Sequence[ExampleScore]) -> dict[str, Any]:
    """One task: its score over all examples, and that of each group."""
    groups: dict[str, list[ExampleScore]] = {}
    for score in scores:
        groups.setdefault(score.group, []).append(score)
    told: dict[str, Any] = {"metric": scores[0].metric, "examples": len(scores)}
    by_group = {name: mean_score(of) for name, of in sorted(groups.items())}
    # Languages have no mean.
    if scores[0].metric != BITS_PER_BYTE:
        told["score"] = mean_score(scores)
    if "" not in groups:
        told["groups"] = by_group
    if scores[0].metric == "eqbench":
        told |= _eq_bench(scores)
    if cut := sum(bool(score.detail.get("cut")) for score in scores):
        told["cut"] = cut
    if all("characters" in score.detail for score in scores):
        told["tokens_per_character"] = {
            name: _total(of, "tokens") / max(_total(of, "characters"), 1)
            for name, of in sorted(groups.items())
        }
    return told


def table(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of text: a task and, where it has no score of its own, a group; a column a model."""
    rows = [("task", *(str(summary["model"]) for summary in summaries))]
    lines: dict[tuple[str, str], dict[str, float | None]] = {}
    for summary in summaries:
        for task, told in summary["tasks"].items():
            found = {"": told["score"]} if "score" in told else dict(told["groups"])
            for name, count in told.get("tokens_per_character", {}).items():
                found[f"{name} tokens a character"] = count
            if "published_score" in told:
                found["published"] = told["published_score"]
            for group, score in found.items():
                lines.setdefault((task, group), {})[summary["model"]] = score
    for (task, group), by_model in lines.items():
        scores = (by_model.get(str(summary["model"])) for summary in summaries)
        cells = ("-" if score is None else f"{score:.4f}" for score in scores)
        rows.append((f"{task} {group}".strip(), *cells))
    return rows


def _eq_bench(scores: Sequence[ExampleScore]) -> dict[str, Any]:
    """The published score: the mean of answers that can be read, if enough of them can."""
    read = [score for score in scores if any(map(score.detail["metrics"].get, READ))]
    share = len(read) / len(scores)
    published = mean_score(read) if share >= LEAST_PARSEABLE else None
    return {"parseable": share, "published_score": published}


def _total(scores: Sequence[ExampleScore], name: str) -> int:
    return sum(score.detail[name] for score in scores)
