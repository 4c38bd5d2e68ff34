"""The report of a law, ``report.md``, with its figures."""

from collections.abc import Callable, Mapping
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

FIGURES = ("surface.png", "front.png", "forgetting.png", "fit.png", "carry.png", "ratio.png")
"""File names of all figures that a report may have."""


@dataclass(frozen=True)
class Report:
    """Markdown, and the figures that it shows, by file name."""

    text: str
    pictures: Mapping[str, bytes]


def make_report(law: Law, results: Results) -> Report:
    """Return the report of a law on the table that it was fitted to."""
    pictures = _pictures(law, results)
    sections = [
        "# Mixture ratio and learning rate",
        f"Objective: {format_objective(law.objective)}.",
        "\n".join(f"- {line.removeprefix('- ')}" for line in conclusion(law)),
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
    present = [part for part in sections if part and _is_available(part, pictures)]
    return Report("\n\n".join(present) + "\n", pictures)


def _is_available(part: str, pictures: Mapping[str, bytes]) -> bool:
    """Return whether a part of the report is text, or a figure that was drawn."""
    return not part.startswith("![") or part.split("](")[1].rstrip(")") in pictures


def _pictures(law: Law, results: Results) -> dict[str, bytes]:
    labels = group_labels(results.corpora)
    curves, runs = _fitted_curves(law, results)
    drawn: dict[str, Callable[[], Figure]] = {}
    if law.ratio_only:
        drawn["ratio.png"] = lambda: draw_ratio(law.ratio_only, law, labels)
    if law.surface:
        drawn["surface.png"] = lambda: draw_surface(View(law), labels)
        drawn["front.png"] = lambda: draw_front(View(law), labels)
        drawn["fit.png"] = lambda: draw_fit(law, labels)
    if any(len(curve.tokens) > 1 for curve in curves):
        drawn["forgetting.png"] = lambda: draw_forgetting(curves, runs, law.objective, labels)
    sizes = (
        {optimum.parameters for optimum in law.extrapolation.optima} if law.extrapolation else ()
    )
    if law.recommendation and len(sizes) > 1:
        drawn["carry.png"] = lambda: draw_extrapolation(law.extrapolation)
    # Fonts are looked up both when drawing and when saving.
    with style():
        return {name: png(draw()) for name, draw in drawn.items()}


def _fitted_curves(law: Law, results: Results) -> tuple[list[Curve], RunsTable]:
    """Return the fitted runs at the size and budget with the most runs, after their curves."""
    runs = results.runs
    fitted = np.isin(runs.run, View(law).measured.run)
    return [results.curves[index] for index in np.flatnonzero(fitted)], runs.where(fitted)


def _ratio_only(law: Law) -> list[str]:
    found = law.ratio_only
    if not found:
        return []
    validation = "**Not validated**: a line through two ratios leaves no ratio for a test."
    if found.held_out is not None:
        validation = f"Error on held-out ratios: {found.held_out:.2%}."
    return [
        "## One learning rate: the ratio alone",
        "![Losses over the ratio](ratio.png)",
        f"Form: {found.form}. {validation}",
    ]


def _surface(law: Law) -> list[str]:
    if not law.surface:
        return []
    return [
        "## The law",
        "![Contours of both losses and of the objective](surface.png)",
        "At the size and budget with the most runs. Lighter colors are lower values. The dashed "
        f"line is the best learning rate for each ratio. {format_optimal_rate(law)}",
    ]


def _front(law: Law) -> list[str]:
    return [
        "## Trade-off between the two losses",
        "![Pareto front](front.png)",
        "Runs on the Pareto front (no other run is better in both losses):",
        markdown_table(front_rows(law.measured_front)),
    ]


def _forgetting(pictures: Mapping[str, bytes]) -> list[str]:
    if "forgetting.png" not in pictures:
        return []
    return ["## Learning curves", "![Losses against tokens](forgetting.png)"]


def _fit(law: Law) -> list[str]:
    if not law.forms:
        return []
    noise = ", ".join(f"{group} {spread:.2%}" for group, spread in law.noise.items())
    repeats = (
        f"Standard deviation of repeated runs: {noise}."
        if noise
        else "No setting was repeated: the noise of a run is estimated from the fit."
    )
    sources = {fit.form: fit.source for fit in law.forms}
    return [
        "## Errors of the forms",
        "Root mean square error of the log loss, about a relative error. Held-out error: each run, "
        "each ratio, each rate and the largest size were held out in turn and predicted from the "
        'rest. Forms are compared by "all", which excludes the outermost ratios and rates. Weight: '
        "the form's share of the bootstrap draws.",
        markdown_table(form_rows(law)),
        "\n".join(f"- {form}: {source}." for form, source in sources.items()),
        repeats,
        "![Predicted against measured](fit.png)",
    ]


def _extrapolation(law: Law) -> list[str]:
    if not (law.extrapolation and law.recommendation):
        return []
    return [
        "## Extrapolation over model sizes",
        "![The optimum by size](carry.png)",
        markdown_table(extrapolation_rows(law)),
        "\n".join(f"- {line}" for line in format_exponents(law)),
    ]


def _pairs(law: Law) -> list[str]:
    if not law.pairs:
        return []
    summary = f"One optimum for all pairs: {law.one_for_all}"
    return ["## Language pairs", summary, markdown_table(pair_rows(law))]


def _next(law: Law) -> list[str]:
    if not law.next_runs:
        return []
    text = (
        "All at the size and budget with the most runs. The remaining variance of the optimum "
        "assumes that the runs in the rows above are done as well."
    )
    return [
        "## Runs that would improve the recommendation most",
        text,
        markdown_table(next_rows(law)),
    ]


def _table(law: Law, results: Results) -> list[str]:
    files = [f"- `{path}`, SHA-256 `{digest}`" for path, digest in results.files.items()]
    corpora = [f"- {group}: {', '.join(names)}" for group, names in results.corpora.items()]
    notes = [f"- {note}" for note in (*results.left_out, *results.remarks, *law.notes)]
    return [
        "## The table",
        "\n".join(files),
        markdown_table(grid_rows(results.runs)),
        "Held-out corpora; a group's loss is the mean over its corpora:",
        "\n".join(corpora),
        "\n".join(notes),
    ]
