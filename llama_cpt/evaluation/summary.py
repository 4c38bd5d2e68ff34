"""Summaries of scores: a JSON file per model, and a table with a column per model."""

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
"""Names of the metric for parseable answers in this package and in lm-evaluation-harness."""


def write_summary(folder: Path) -> dict[str, Any]:
    """Write ``summary.json`` for all scores in a model's ``folder``, and return the summary."""
    tasks = {name: summary_of(scores) for name, scores in read_scores(str(folder)).items()}
    summary = {"model": folder.name, "tasks": tasks}
    content = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_atomic(epath.Path(folder / FILE), content.encode())
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


def table(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a table of text cells, the header first, with a column per model.

    A task has a row for its score, or a row per group if it has no overall score. Additional rows
    contain the score of EQ-Bench as the authors of EQ-Bench define it, and the number of tokens per
    character of held-out text.
    """
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
    """Return the share of parseable answers, and the score as the authors of EQ-Bench define it.

    This score is the mean over the parseable answers, or None if the share of parseable answers is
    less than ``LEAST_PARSEABLE``.
    """
    parseable = [score for score in scores if any(map(score.detail["metrics"].get, READ))]
    share = len(parseable) / len(scores)
    published = mean_score(parseable) if share >= LEAST_PARSEABLE else None
    return {"parseable": share, "published_score": published}


def _total(scores: Sequence[ExampleScore], name: str) -> int:
    return sum(score.detail[name] for score in scores)
