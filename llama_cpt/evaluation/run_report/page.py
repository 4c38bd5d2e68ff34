"""The page of the report on training runs: tables and figures in one HTML file."""

from collections.abc import Callable, Sequence
from html import escape
import statistics

from matplotlib.figure import Figure

from llama_cpt.config.objectives import NextTokenConfig
from llama_cpt.evaluation.comparison.page import html_figure, html_page, html_table
from llama_cpt.evaluation.run_report.figures import (
    REALIZED,
    draw_forgetting,
    draw_heldout,
    draw_heldout_by_compute,
    draw_ratio,
    draw_time,
    draw_training,
)
from llama_cpt.evaluation.run_report.records import (
    HELDOUT,
    TRAINING,
    RunRecord,
    config_differences,
    union,
)
from llama_cpt.mixture_law.figure_style import amount, png, rate, style

NO_HELDOUT = "The runs have no held-out text, so the report cannot show what they forgot."


def summary_rows(runs: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    """Return a table with one row per run; the first row is the header."""
    corpora = union(runs, HELDOUT)
    names: tuple[str, ...] = (
        "run",
        "steps",
        "tokens",
        "model FLOPs",
        "peak rate",
        "ALMR",
        "tokens/s",
        "hours",
    )
    rows: list[tuple[str, ...]] = [(*names, *(f"{name}, bits per byte" for name in corpora))]
    for run in runs:
        realized = run.last(REALIZED)
        speeds = run.series("perf/tokens_per_second").values
        rows.append(
            (
                run.name,
                f"{run.steps:,} of {run.config.num_steps:,}",
                amount(float(run.steps * run.tokens_per_step)),
                f"{run.steps * run.flops_per_step:.3g}",
                rate(run.config.optimizer.peak_learning_rate),
                "" if realized is None else f"{realized:.4f}",
                amount(statistics.median(speeds)) if len(speeds) else "",
                f"{sum(run.seconds.values()) / 3600:.2f}",
                *(_change(run, corpus) for corpus in corpora),
            )
        )
    return rows


def make_page(runs: Sequence[RunRecord]) -> str:
    """Return the page as HTML, with its figures inside."""
    title = f"Training of {', '.join(run.name for run in runs)}"
    differences = config_differences(runs)
    parts = [html_table(summary_rows(runs))]
    with style():
        parts += [_figure(*one, runs) for one in _figures(runs)]
    if not union(runs, HELDOUT):
        parts.insert(1, f"<p>{NO_HELDOUT}</p>")
    if len(runs) > 1:
        parts.append("<h2>Differences of the configs</h2>")
        parts.append(html_table(differences) if differences[1:] else "<p>None.</p>")
    return html_page(title, "\n".join(parts))


def _figures(
    runs: Sequence[RunRecord],
) -> list[tuple[str, str, Callable[[Sequence[RunRecord]], Figure]]]:
    """Return heading, caption and drawing function of each figure for which there is data."""
    figures = []
    if union(runs, HELDOUT):
        figures += [
            (
                "Held-out text",
                "Bits per byte of each held-out corpus. Less is better. Values of different "
                "languages are not comparable.",
                draw_heldout,
            ),
            (
                "Held-out text by compute",
                "The same values against the model FLOPs of the training so far.",
                draw_heldout_by_compute,
            ),
            (
                "Learned and forgotten",
                "Change of the bits per byte since the first evaluation of each run. A value above "
                "0 means that the model forgot.",
                draw_forgetting,
            ),
        ]
    # A preference loss has a different unit.
    predicting = [run for run in runs if isinstance(run.config.objective, NextTokenConfig)]
    if union(predicting, TRAINING):
        caption = "Mean next-token loss of each corpus in nats per token."
        figures.append(("Training loss", caption, lambda _: draw_training(predicting)))
    if any(len(run.series(REALIZED).steps) for run in runs):
        caption = "Target (wide pale line) and realized ALMR (thin line) of all rows so far."
        figures.append(("Mixture ratio", caption, draw_ratio))
    if any(run.seconds for run in runs):
        caption = "Wall time by part. docs/reference/metrics.md describes the parts."
        figures.append(("Time", caption, draw_time))
    return figures


def _figure(
    heading: str,
    caption: str,
    draw: Callable[[Sequence[RunRecord]], Figure],
    runs: Sequence[RunRecord],
) -> str:
    return f"<h2>{escape(heading)}</h2>\n{html_figure(png(draw(runs)), caption)}"


def _change(run: RunRecord, corpus: str) -> str:
    """Return the first and the last bits per byte of a corpus and the change, as text."""
    values = run.series(HELDOUT.format(corpus)).values
    if not len(values):
        return ""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{values[0]:.4f} to {values[-1]:.4f} ({values[-1] / values[0] - 1:+.1%})"
