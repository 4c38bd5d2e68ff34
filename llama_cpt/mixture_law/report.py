"""The Markdown report of a law, ``report.md``, and its figures."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure
import numpy as np

from llama_cpt.mixture_law.figure_style import group_labels, png, style
from llama_cpt.mixture_law.figures import (
    draw_extrapolation,
    draw_fit,
    draw_forgetting,
    draw_front,
    draw_ratio,
)
from llama_cpt.mixture_law.findings import (
    conclusion,
    extrapolation_rows,
    form_rows,
    format_exponents,
    format_objective,
    format_optimal_rate,
    front_rows,
    grid_rows,
    next_rows,
    pair_rows,
)
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.runs_table import Curve, Results, RunsTable
from llama_cpt.mixture_law.surface_figure import View, draw_surface
from llama_cpt.runtime.tables import markdown_table
from llama_cpt.runtime.untrusted_text import code_span, escape_markdown

FIGURES = ("surface.png", "front.png", "forgetting.png", "fit.png", "carry.png", "ratio.png")
"""File names of all figures that a report can contain."""


@dataclass(frozen=True)
class Report:
    """The text and the figures of a report."""

    text: str
    """Markdown with links to the figures."""
    pictures: Mapping[str, bytes]
    """Figures as PNG, by file name."""


def make_report(law: Law, results: Results) -> Report:
    """Return the report of a law and of the table to which it was fitted."""
    pictures = _pictures(law, results)
    sections = [
        "# Mixture ratio and learning rate",
        f"Objective: {format_objective(law.objective)}.",
        _items(line.removeprefix("- ") for line in conclusion(law)),
        *_ratio_only(law),
        *_surface(law),
        *_front(law),
        *_forgetting(pictures),
        *_fit(law),
        *_extrapolation(law),
        *_pairs(law),
        *_next(law),
        *_table(law, results),
    ]
    # Sections are empty, or link to a missing figure, if the law has no data for them.
    present = [part for part in sections if part and _is_available(part, pictures)]
    return Report("\n\n".join(present) + "\n", pictures)


def _is_available(part: str, pictures: Mapping[str, bytes]) -> bool:
    """Return False for a link to a figure that was not drawn, True for all other parts."""
    return not part.startswith("![") or part.split("](")[1].rstrip(")") in pictures


def _pictures(law: Law, results: Results) -> dict[str, bytes]:
    """Return the figures for which the law has data, as PNG by file name."""
    labels = group_labels(results.corpora)
    curves, runs = _fitted_curves(law, results)
    ratio_only, extrapolation = law.ratio_only, law.extrapolation
    drawn: dict[str, Callable[[], Figure]] = {}
    if ratio_only:
        drawn["ratio.png"] = lambda: draw_ratio(ratio_only, law, labels)
    if law.surface:
        drawn["surface.png"] = lambda: draw_surface(View(law), labels)
        drawn["front.png"] = lambda: draw_front(View(law), labels)
        drawn["fit.png"] = lambda: draw_fit(law, labels)
    if any(len(curve.tokens) > 1 for curve in curves):
        drawn["forgetting.png"] = lambda: draw_forgetting(curves, runs, law.objective, labels)
    if law.recommendation and extrapolation:
        if len({optimum.parameters for optimum in extrapolation.optima}) > 1:
            drawn["carry.png"] = lambda: draw_extrapolation(extrapolation)
    # Matplotlib looks up fonts both when drawing and when saving.
    with style():
        return {name: png(draw()) for name, draw in drawn.items()}


def _fitted_curves(law: Law, results: Results) -> tuple[list[Curve], RunsTable]:
    """Return the learning curves and the settings of the runs that the law was fitted to.

    Only runs at the size and budget with the most runs are included.
    """
    runs = results.runs
    fitted = np.isin(runs.run, View(law).runs.run)
    return [results.curves[index] for index in np.flatnonzero(fitted)], runs.where(fitted)


def _ratio_only(law: Law) -> list[str]:
    """Return the lines of the section on the losses as functions of the ratio only."""
    found = law.ratio_only
    if not found:
        return []
    validation = "**Not validated**: a line through two ratios leaves no ratio to hold out."
    if found.held_out is not None:
        validation = f"Error on held-out ratios: {found.held_out:.2%}."
    return [
        "## Loss versus ratio, at one learning rate",
        "![Losses versus ratio](ratio.png)",
        f"Form: {found.form}. {validation}",
    ]


def _surface(law: Law) -> list[str]:
    """Return the lines of the section on the loss surfaces."""
    if not law.surface:
        return []
    return [
        "## The law",
        "![Contours of both losses and of the objective](surface.png)",
        "The figure shows the model size and token budget with the most runs. Lighter colors are "
        "lower values. The dashed line is the optimal learning rate. "
        f"{format_optimal_rate(law)}",
    ]


def _front(law: Law) -> list[str]:
    """Return the lines of the section on the Pareto front."""
    return [
        "## Trade-off between the two losses",
        "![Pareto front](front.png)",
        "Runs on the Pareto front (no other run has lower losses for both groups):",
        markdown_table(front_rows(law.measured_front)),
    ]


def _forgetting(pictures: Mapping[str, bytes]) -> list[str]:
    """Return the lines of the section on the learning curves, if their figure was drawn."""
    if "forgetting.png" not in pictures:
        return []
    return ["## Learning curves", "![Losses versus tokens](forgetting.png)"]


def _fit(law: Law) -> list[str]:
    """Return the lines of the section on the errors of the forms."""
    if not law.forms:
        return []
    noise = ", ".join(f"{group} {spread:.2%}" for group, spread in law.noise.items())
    repeats = (
        f"Standard deviation of repeated runs: {noise}."
        if noise
        else "No run was repeated, so the noise of a run is estimated by the held-out error."
    )
    sources = {fit.form: fit.source for fit in law.forms}
    return [
        "## Errors of the forms",
        "The table contains root mean square errors of the log loss, which are approximately "
        "relative errors of the loss. For the held-out errors, each run, each ratio, each learning "
        "rate and the largest model size were held out in turn and predicted from the remaining "
        'runs. Forms are compared by the column "all", which excludes the outermost ratios and '
        "learning rates. "
        "The weight of a form is its share of the bootstrap draws.",
        markdown_table(form_rows(law)),
        "\n".join(f"- {form}: {source}." for form, source in sources.items()),
        repeats,
        "![Predicted versus observed losses](fit.png)",
    ]


def _extrapolation(law: Law) -> list[str]:
    """Return the lines of the section on the optima by model size and their scaling exponents."""
    if not (law.extrapolation and law.recommendation):
        return []
    return [
        "## Extrapolation to other model sizes",
        "![The optimum by model size](carry.png)",
        markdown_table(extrapolation_rows(law)),
        "\n".join(f"- {line}" for line in format_exponents(law)),
    ]


def _pairs(law: Law) -> list[str]:
    """Return the lines of the section on the optima of several language pairs."""
    if not law.pairs:
        return []
    summary = (
        f"Do all language pairs have the same optimum? {escape_markdown(law.one_for_all or '')}"
    )
    return ["## Language pairs", summary, markdown_table(pair_rows(law))]


def _next(law: Law) -> list[str]:
    """Return the lines of the section on the proposed runs."""
    if not law.next_runs:
        return []
    text = (
        "All proposed runs have the model size and token budget with the most runs. The remaining "
        "variance of the optimum is computed as if the runs in the rows above were added as well."
    )
    return [
        "## Runs that would improve the recommendation most",
        text,
        markdown_table(next_rows(law)),
    ]


def _table(law: Law, results: Results) -> list[str]:
    """Return the lines of the section on the table: files, settings, held-out corpora and notes."""
    files = [f"- {code_span(path)}, SHA-256 `{digest}`" for path, digest in results.files.items()]
    corpora = (f"{group}: {', '.join(names)}" for group, names in results.corpora.items())
    return [
        "## The table",
        "\n".join(files),
        markdown_table(grid_rows(results.runs)),
        "Held-out corpora (the loss of a group is the mean over its corpora):",
        _items(corpora),
        _items((*results.left_out, *results.remarks, *law.notes)),
    ]


def _items(lines: Iterable[str]) -> str:
    """Return a Markdown list of ``lines``, which can contain names from the table of runs."""
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)
