"""The study of docs/notes/study.md, which fits a mixture law to two sizes and tests a third size.

    python -m benchmarks.study fit     train the base models, sweep two sizes, fit law.json
    python -m benchmarks.study judge   train at the large size, compare the losses with the law

If a command is interrupted, start it again to resume. `judge` prints the tables of
docs/notes/study.md.
"""

import argparse
from pathlib import Path
import shutil

from etils import epath
from matplotlib.figure import Figure
import numpy as np

from benchmarks.real_text import write_sample
from configs.study.base_models import FOLDER, large, small
from configs.study.sweeps import BEST_OF_SMALL, PAPER_RATIO, PREDICTED
from examples.bilingual_world.vocabulary import train_vocabulary
from examples.shown_command import run_command
from llama_cpt.evaluation.learning_curves import save_figure
from llama_cpt.mixture_law.law import Law
from llama_cpt.mixture_law.law_file import load_law
from llama_cpt.mixture_law.runs_table import RunsTable, read_results
from llama_cpt.mixture_law.table import GROUPS
from llama_cpt.model.flops import non_embedding_parameters
from llama_cpt.runtime.metrics import read_lines

SIZES = ("small", "middle", "large")
FITTED = ("small", "middle", "noise")
JUDGED = ("large", "large_noise")
DOCS = Path("docs/notes/study")
CELLS = {
    "predicted by the law": PREDICTED,
    "best of the small size": BEST_OF_SMALL,
    "ALMR 0.33": PAPER_RATIO,
}


def fit() -> None:
    """Train the base models, run the sweeps of two sizes, and fit the law."""
    tokenizer = Path(small.data.tokenizer)
    if not tokenizer.exists():
        tokenizer.parent.mkdir(parents=True, exist_ok=True)
        sample = write_sample(tokenizer.parent)
        # Rare Chinese characters are left out, because all of them would exceed the vocabulary.
        train_vocabulary(sample, tokenizer, small.architecture.vocab_size, character_coverage=0.98)
    for size in SIZES:
        run_command("train", f"configs/study/base_models.py:{size}")
    for sweep in FITTED:
        run_command("sweep", f"configs/study/sweeps.py:{sweep}")
    tables = [_kept(sweep) for sweep in FITTED]
    run_command("fit_law", *tables, "--output", str(DOCS), "--next", "4", *_target())


def judge() -> None:
    """Run the sweeps of the large size, and compare the losses with the law that ``fit`` wrote."""
    for sweep in JUDGED:
        run_command("sweep", f"configs/study/sweeps.py:{sweep}")
    law = load_law(str(DOCS / "law.json"))
    points = read_results([_kept(sweep) for sweep in JUDGED]).runs
    print(_losses(law, points))
    print(_regrets(law, points))
    _draw(law, points)


def _kept(sweep: str) -> str:
    """Copy the results of a sweep next to the law, and return the path of the copy."""
    kept = DOCS / f"{sweep}.csv"
    DOCS.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(f"{FOLDER}/{sweep}/results.csv", kept)
    return str(kept)


def _losses(law: Law, points: RunsTable) -> str:
    """Return the table of predicted and measured losses."""
    lines = ["| ALMR | LR | seed | group | predicted | 90 % | measured | error |"]
    lines.append("| --- " * 8 + "|")
    for i in range(len(points)):
        almr, rate = points.almr[i], points.learning_rate[i]
        predicted = law.predict(almr, rate)
        for group in GROUPS:
            band, measured = predicted[group], getattr(points, group)[i]
            lines.append(
                f"| {almr:g} | {rate:g} | {points.seed[i]:g} | {group} | {band.value:.4f} "
                f"| {band.low:.4f} to {band.high:.4f} | {measured:.4f} "
                f"| {measured / band.value - 1:+.2%} |"
            )
    return "\n".join(lines)


def _regrets(law: Law, points: RunsTable) -> str:
    """Return the table of regrets, with objectives averaged over seeds.

    The regret is (objective - best) / (median - best). The best and the median objective are taken
    over all measured settings.
    """
    objective = np.asarray(law.evaluate_objective(points.additional, points.original))
    settings = np.stack([points.almr, points.learning_rate], axis=1)
    cells, member = np.unique(settings, axis=0, return_inverse=True)
    means = np.array([objective[member == i].mean() for i in range(len(cells))])
    regret = (means - means.min()) / (np.median(means) - means.min())
    names = {cell: name for name, cell in CELLS.items()}
    lines = ["| cell | ALMR | LR | seeds | objective | regret |", "| --- " * 6 + "|"]
    for i in np.argsort(means):
        almr, rate = map(float, cells[i])
        name = next((n for c, n in names.items() if np.allclose(c, (almr, rate))), "neighbor")
        count = int((member == i).sum())
        lines.append(
            f"| {name} | {almr:g} | {rate:g} | {count} | {means[i]:.4f} | {regret[i]:.2f} |"
        )
    return "\n".join(lines)


def _draw(law: Law, points: RunsTable) -> None:
    """Draw the predicted interval and the measured losses of each setting at the large size."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    cells = sorted({*zip(points.almr, points.learning_rate, strict=True)})
    labels = [f"{almr:g}\n{rate:g}" for almr, rate in cells]
    for axes, group in zip(figure.subplots(1, 2), GROUPS, strict=True):
        for position, (almr, rate) in enumerate(cells):
            band = law.predict(almr, rate)[group]
            axes.plot(
                [position] * 2, [band.low, band.high], color="#7b3294", linewidth=6, alpha=0.3
            )
            axes.plot(position, band.value, "_", color="#7b3294", markersize=16)
            here = (points.almr == almr) & (points.learning_rate == rate)
            measured = getattr(points, group)[here]
            axes.plot([position] * len(measured), measured, "o", color="black", markersize=5)
        if group == "original":
            bound = 1.03 * law.base()["original"]
            axes.axhline(bound, color="black", linestyle="--", linewidth=1)
            axes.annotate("+3 %", (0, bound), xytext=(-8, 3), textcoords="offset points")
        axes.set_title(f"{group}: predicted with 90 %, measured", loc="left", fontsize=11)
        axes.set_xticks(range(len(cells)), labels, fontsize=8)
        axes.set_xlabel("ALMR, learning rate")
        axes.set_ylabel("held-out bits per byte")
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, DOCS / "judged.png", dpi=160)


def _target() -> list[str]:
    """Return the options of ``fit_law`` that describe the large size and its base model."""
    last = read_lines(epath.Path(f"{FOLDER}/base_large/metrics.jsonl"), large.num_steps)[-1]
    corpora = {"additional": "zh", "original": "en"}
    bits = [f"{group}={last[f'eval/{code}/bits_per_byte']}" for group, code in corpora.items()]
    size = non_embedding_parameters(large.architecture)
    return ["--target-parameters", str(size), "--target-base", ",".join(bits)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("fit", "judge"))
    {"fit": fit, "judge": judge}[parser.parse_args().part]()
