"""``report.md``: what the runs say, with pictures."""

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
    markdown,
    next_rows,
    pair_rows,
)
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.runs_table import Curve, Results, RunsTable
from llama_cpt.mixture_law.surface_figure import View, draw_surface

PICTURES = ("surface.png", "front.png", "forgetting.png", "fit.png", "carry.png", "ratio.png")


@dataclass(frozen=True)
class Report:
    """Markdown, and the pictures that it shows by their file names."""

    text: str
    pictures: Mapping[str, bytes]


def make_report(law: Law, results: Results) -> Report:
    """The report of a law on the table that it was fitted to."""
    pictures = _pictures(law, results)
    sections = [
        "# Mixture ratio and learning rate",
        f"Asked: {format_objective(law.objective)}.",
        "\n".join(f"- {line.removeprefix('- ')}" for line in conclusion(law)),
        *_ratio_only(law),
        *_surface(law),
        *_front(law),
        *_forgetting(pictures),
        *_fit(law),
        *_carry(law),
        *_pairs(law),
        *_next(law),
        *_table(law, results),
    ]
    shown = [part for part in sections if part and _is_there(part, pictures)]
    return Report("\n\n".join(shown) + "\n", pictures)


def _is_there(part: str, pictures: Mapping[str, bytes]) -> bool:
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
    with style():
        return {name: png(draw()) for name, draw in drawn.items()}


def _fitted_curves(law: Law, results: Results) -> tuple[list[Curve], RunsTable]:
    """Inside the fitted runs of the size and budget that the other pictures show."""
    points = results.runs
    fitted = np.isin(points.run, View(law).measured.run)
    return [results.curves[place] for place in np.flatnonzero(fitted)], points.where(fitted)


def _ratio_only(law: Law) -> list[str]:
    found = law.ratio_only
    if not found:
        return []
    told = [
        "## One learning rate: the ratio alone",
        "![Losses over the ratio](ratio.png)",
        f"Form: {found.form}. "
        + (
            f"Error on ratios left out: {found.held_out:.2%}."
            if found.held_out is not None
            else "**Not validated**: a line through two ratios has no ratio to spare."
        ),
    ]
    return told


def _surface(law: Law) -> list[str]:
    if not law.surface:
        return []
    return [
        "## The law",
        "![Contours of both losses and of the goal](surface.png)",
        "At the size and budget with the most runs. Lighter is lower. The dashed line is the "
        f"ALMR-LR correlation. {format_optimal_rate(law)}",
    ]


def _front(law: Law) -> list[str]:
    return [
        "## What is gained against what is kept",
        "![The trade-off](front.png)",
        "Runs of which none is better in both losses:",
        markdown(front_rows(law.measured_front)),
    ]


def _forgetting(pictures: Mapping[str, bytes]) -> list[str]:
    if "forgetting.png" not in pictures:
        return []
    return ["## Inside the runs", "![Losses against tokens](forgetting.png)"]


def _fit(law: Law) -> list[str]:
    if not law.forms:
        return []
    noise = ", ".join(f"{group} {spread:.2%}" for group, spread in law.noise.items())
    told = (
        f"Repeated runs differ by (standard deviation): {noise}."
        if noise
        else ("No setting was run twice: the noise of a run is taken from the fit.")
    )
    sources = {fit.form: fit.source for fit in law.forms}
    return [
        "## How well the forms have it",
        "Root mean square error of the log loss, about a relative error. Held out: each run, each "
        "ratio, each rate and the largest size were left out in turn and predicted from the rest; "
        '"all", by which forms are compared, leaves the outermost ratios and rates aside. Weight: '
        "share of the bootstrap draws that are this form's.",
        markdown(form_rows(law)),
        "\n".join(f"- {form}: {source}." for form, source in sources.items()),
        told,
        "![Predicted against measured](fit.png)",
    ]


def _carry(law: Law) -> list[str]:
    if not (law.extrapolation and law.recommendation):
        return []
    return [
        "## From size to size",
        "![The optimum by size](carry.png)",
        markdown(extrapolation_rows(law)),
        "\n".join(f"- {told}" for told in format_exponents(law)),
    ]


def _pairs(law: Law) -> list[str]:
    if not law.pairs:
        return []
    return ["## Language pairs", law.one_for_all or "", markdown(pair_rows(law))]


def _next(law: Law) -> list[str]:
    if not law.next_runs:
        return []
    told = "All at the size and budget with the most runs. "
    told += "Each row counts on the rows above it. What is left of the optimum's variance:"
    return ["## Runs that would narrow it most", told, markdown(next_rows(law))]


def _table(law: Law, results: Results) -> list[str]:
    files = [f"- `{path}`, SHA-256 `{digest}`" for path, digest in results.files.items()]
    corpora = [f"- {group}: {', '.join(names)}" for group, names in results.corpora.items()]
    said = [f"- {told}" for told in (*results.left_out, *results.remarks, *law.notes)]
    return [
        "## The table",
        "\n".join(files),
        markdown(grid_rows(results.runs)),
        "Held-out corpora; a group's loss is the mean of its own:",
        "\n".join(corpora),
        "\n".join(said),
    ]
