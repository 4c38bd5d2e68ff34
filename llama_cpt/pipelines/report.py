"""The report on all stages of a pipeline: gains, forgetting and sample answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from etils import epath
from matplotlib.figure import Figure

from llama_cpt.config.pipeline import PipelineConfig
from llama_cpt.config.schema import PreferenceConfig, TrainConfig
from llama_cpt.evaluation.comparison.page import markdown_of, write_comparison
from llama_cpt.evaluation.exact_match import Accuracy, Question, accuracy_table
from llama_cpt.evaluation.learning_curves import save_figure
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.metrics import read_lines
from llama_cpt.runtime.tables import Markdown, aligned_table, markdown_table
from llama_cpt.runtime.untrusted_text import escape_markdown

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
LOGPS = ("logps/chosen", "logps/rejected")


@dataclass(frozen=True)
class StageReport:
    """The measurements of one model of the pipeline."""

    name: str
    tokens: int
    """Number of tokens trained on in this stage, including padding."""
    bits: Mapping[str, float]
    """Held-out bits per byte by corpus."""
    curves: Mapping[str, list[tuple[int, float]]]
    """List of (step, value) by preference metric; empty without a preference loss."""
    samples: Mapping[str, str]
    """Answer of the model, by prompt."""
    accuracies: Mapping[str, Accuracy]
    """Exact-match accuracy on the pipeline's questions, by language."""


def read_stage(
    name: str,
    stage: TrainConfig,
    *,
    before: bool,
    samples: Mapping[str, str],
    accuracies: Mapping[str, Accuracy],
) -> StageReport:
    """Return the report of a stage, read from the ``metrics.jsonl`` of its run.

    The bits per byte are the last values in the file. If ``before`` is True, the bits per byte are
    the first values, which are measured before the stage is trained.
    """
    lines = read_lines(epath.Path(stage.output) / "metrics.jsonl", stage.num_steps)
    bits: dict[str, float] = {}
    for line in lines[::-1] if before else lines:
        for key, value in line.items():
            if key.startswith("eval/") and key.endswith("/bits_per_byte"):
                bits[key.split("/")[1]] = value
    length = stage.data.sequence_length
    tokens = 0 if before else stage.num_steps * stage.global_batch_size * length
    preferences = isinstance(stage.objective, PreferenceConfig) and not before
    curves = {
        key: [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        for key in (REWARDS + LOGPS if preferences else ())
    }
    return StageReport(name, tokens, bits, curves, samples, accuracies)


def write_report(
    config: PipelineConfig,
    stages: Sequence[StageReport],
    questions: Sequence[Question],
    scores: Sequence[str],
) -> None:
    """Write ``report.md`` and its figure ``report.png`` to the pipeline's folder.

    ``scores`` contains one folder per model, with the model's scores on the pipeline's tasks. A
    comparison of these scores is written to the subfolder ``scores/`` of the pipeline's folder.
    """
    folder = epath.Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    corpora = _corpora(stages)
    _draw(stages, corpora, Path(folder) / "report.png")
    title = f"# {escape_markdown(folder.name)}"
    parts = [title, "![Bits per byte and rewards](report.png)", _bits(stages, corpora)]
    if scores:
        parts.append(_comparison(folder, scores))
    if questions:
        parts.append(_examination(stages, len(questions)))
    parts += [_rewards(stage) for stage in stages if stage.curves]
    parts += [_samples(stages, prompt) for prompt in config.prompts]
    write_atomic(folder / "report.md", ("\n\n".join(parts) + "\n").encode())


def summary(stages: Sequence[StageReport]) -> str:
    """Return the tables of bits per byte and of exact-match accuracy for a terminal."""
    tables = [_bits_rows(stages, _corpora(stages))]
    if any(stage.accuracies for stage in stages):
        tables.append(accuracy_table({stage.name: stage.accuracies for stage in stages}))
    return "\n\n".join(aligned_table(rows) for rows in tables)


def _corpora(stages: Sequence[StageReport]) -> list[str]:
    return list(dict.fromkeys(name for stage in stages for name in stage.bits))


def _bits(stages: Sequence[StageReport], corpora: Sequence[str]) -> str:
    rows = _bits_rows(stages, corpora)
    explanation = "The bits per byte of whole documents that are not in the training data."
    return f"## Held-out bits per byte\n\n{explanation}\n\n{markdown_table(rows)}"


def _bits_rows(stages: Sequence[StageReport], corpora: Sequence[str]) -> list[tuple[str, ...]]:
    rows = [("after", "tokens", *(f"{name}, bits per byte" for name in corpora))]
    for stage in stages:
        values = (
            f"{stage.bits[name]:.4f}{_change(stages[0], stage, name)}" if name in stage.bits else ""
            for name in corpora
        )
        rows.append((stage.name, f"{stage.tokens:,}", *values))
    return rows


def _change(first: StageReport, stage: StageReport, corpus: str) -> str:
    """Return the change from the first model in percent, as text; empty for the first model."""
    if stage is first or corpus not in first.bits:
        return ""
    return f" ({stage.bits[corpus] / first.bits[corpus] - 1:+.1%})"


def _examination(stages: Sequence[StageReport], count: int) -> str:
    explanation = (
        f"{count} questions with one greedy answer each, which must match exactly. Chance is the "
        "accuracy of guessing among plausible answers, as given in the file of questions."
    )
    rows = accuracy_table({stage.name: stage.accuracies for stage in stages})
    return f"## Examination\n\n{explanation}\n\n" + markdown_table(rows)


def _comparison(folder: epath.Path, scores: Sequence[str]) -> str:
    comparison = write_comparison(scores, str(folder / "scores"))
    return f"## Side by side\n\n{markdown_of(comparison, 'scores/')}"


def _rewards(stage: StageReport) -> str:
    rows: list[tuple[str, ...]] = [("", "first", "last")]
    for key, points in stage.curves.items():
        if points:
            rows.append((Markdown(f"`{key}`"), f"{points[0][1]:.4f}", f"{points[-1][1]:.4f}"))
    return f"## Preferences: {escape_markdown(stage.name)}\n\n" + markdown_table(rows)


def _samples(stages: Sequence[StageReport], prompt: str) -> str:
    rows = [("model", "answer")]
    rows += [(stage.name, stage.samples[prompt]) for stage in stages]
    return f"## {escape_markdown(prompt)}\n\n" + markdown_table(rows)


def _draw(stages: Sequence[StageReport], corpora: Sequence[str], output: Path) -> None:
    """Draw the bits per byte after each stage, and the rewards of stages with a preference loss."""
    rewarded = [stage for stage in stages if stage.curves.get("rewards/chosen")]
    figure = Figure(figsize=(4.6 * (1 + bool(rewarded)), 3.4), layout="constrained")
    axes = figure.subplots(1, 1 + bool(rewarded), squeeze=False)[0]
    for corpus in corpora:
        points = [(stage.name, stage.bits[corpus]) for stage in stages if corpus in stage.bits]
        axes[0].plot(*zip(*points, strict=True), "o-", label=corpus)
        axes[0].annotate(
            f"{points[-1][1]:.2f}", points[-1], xytext=(6, 0), textcoords="offset points"
        )
    axes[0].set_title("Held-out bits per byte after each stage", fontsize=10, loc="left")
    axes[0].set_ylim(bottom=0)
    if corpora:
        axes[0].legend(frameon=False)
    for stage in rewarded:
        for key, style in (("rewards/chosen", "-"), ("rewards/rejected", "--")):
            axes[1].plot(*zip(*stage.curves[key], strict=True), style, label=key)
        axes[1].set_title(f"Rewards in {stage.name}", fontsize=10, loc="left")
        axes[1].set_xlabel("step")
        axes[1].legend(frameon=False)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="#dddddd", linewidth=0.7)
    save_figure(figure, output, dpi=160)
