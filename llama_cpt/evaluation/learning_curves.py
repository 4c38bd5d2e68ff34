"""Learning curves of continual pre-training: held-out bits per byte versus training tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import os
from pathlib import Path

from etils import epath
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
import numpy as np

from llama_cpt.config.fields import MAX_INTEGER
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.metrics import FILE, read_lines

# Colors of Okabe and Ito (2008), which color-blind readers can distinguish, and line styles.
_STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"))
_GREY = "#555555"


@dataclass(frozen=True)
class Curve:
    """Held-out bits per byte of one run during training."""

    label: str
    tokens: Float[np.ndarray, " points"]
    """Number of tokens trained on before each evaluation."""
    bits: Mapping[str, Float[np.ndarray, " points"]]
    """Bits per byte at each evaluation, by held-out corpus."""

    def change(self, corpus: str) -> float:
        """Return the ratio of the last to the first bits per byte of ``corpus``."""
        return float(self.bits[corpus][-1] / self.bits[corpus][0])


def read_curve(folder: str, label: str, corpora: Sequence[str]) -> Curve:
    """Return the learning curve of a run, read from the ``metrics.jsonl`` in its folder.

    Raises UserError if ``folder`` is not a run folder, or if fewer than two evaluations of the run
    include all ``corpora``.
    """
    run = epath.Path(folder)
    for file in (run / "config.json", run / FILE):
        if not file.exists():
            raise UserError(f"{folder}: not a run folder (it has no {file.name}).")
    keys = [f"eval/{name}/bits_per_byte" for name in corpora]
    # A value that was not finite is None.
    points = [p for p in read_lines(run / FILE) if all(p.get(key) is not None for key in keys)]
    if len(points) < 2:
        raise UserError(
            f"{folder}: {len(points)} held-out evaluations of {', '.join(corpora)}; at least 2 are "
            "needed; set a lower evaluation.every_steps."
        )
    tokens_per_step = _tokens_per_step(run / "config.json")
    bits = {
        name: np.array([p[f"eval/{name}/bits_per_byte"] for p in points], float) for name in corpora
    }
    return Curve(label, np.array([p["step"] * tokens_per_step for p in points], float), bits)


def _tokens_per_step(file: epath.Path) -> int:
    """Return the number of tokens per step of the run with the config ``file``."""
    remedy = "restore the file from a copy"
    config = read_json_object(str(file), remedy)
    data = config.get("data")
    rows = config.get("global_batch_size")
    length = data.get("sequence_length") if isinstance(data, dict) else None
    if type(rows) is int and type(length) is int and 0 < rows * length <= MAX_INTEGER:
        return rows * length
    raise UserError(
        f"{file}: global_batch_size and data.sequence_length must be integers above 0; {remedy}."
    )


def draw_curves(
    curves: Sequence[Curve],
    output: str | Path,
    *,
    added: str,
    original: str,
    names: Mapping[str, str],
) -> None:
    """Write a PNG with a panel for the ``added`` corpus and a panel for the ``original`` corpus.

    ``names`` maps each corpus to the name of its language. The title is the result of ``finding``.
    """
    figure = Figure(figsize=(8, 4.3), layout="constrained")
    figure.suptitle(finding(curves, added, original, names), fontsize=10, fontweight="bold")
    panels = ((added, f"Gained: {names[added]}"), (original, f"Forgotten: {names[original]}"))
    for axes, (corpus, title) in zip(figure.subplots(1, 2), panels, strict=True):
        _draw_panel(axes, curves, corpus)
        axes.set_title(title, fontsize=10.5, loc="left")
    save_figure(figure, Path(output), dpi=200)


def save_figure(figure: Figure, output: Path, *, dpi: int) -> None:
    """Write ``figure`` as a PNG to a temporary file and rename the file to ``output``."""
    partial = output.with_name(f"{output.name}.partial")
    figure.savefig(partial, format="png", dpi=dpi)
    os.replace(partial, output)


def finding(curves: Sequence[Curve], added: str, original: str, names: Mapping[str, str]) -> str:
    """Return a line per run about the changes in bits per byte of ``added`` and ``original``.

    A run learns ``added`` if its bits per byte fall by more than 5 %. The run keeps ``original`` if
    its bits per byte rise by less than 5 %.
    """
    lines = []
    for curve in curves:
        learned = "learns" if curve.change(added) < 0.95 else "does not learn"
        change = curve.change(original)
        kept = "keeps" if change < 1.05 else "loses some" if change < 1.25 else "forgets"
        lines.append(
            f"{curve.label} {learned} {names[added]} ({_from_to(curve.bits[added])} bits per byte) "
            f"and {kept} {names[original]} ({_from_to(curve.bits[original])})"
        )
    return "\n".join(lines)


def _from_to(bits: Float[np.ndarray, " points"]) -> str:
    return f"{bits[0]:.2f} to {bits[-1]:.2f}"


def _draw_panel(axes: Axes, curves: Sequence[Curve], corpus: str) -> None:
    before = curves[0].bits[corpus][0]
    axes.axhline(before, color=_GREY, linewidth=0.9, linestyle=(0, (1, 2)))
    labels = [(before, f"before: {before:.2f}", _GREY, "normal")]
    for curve, (color, style) in zip(curves, _STYLES, strict=False):
        end = curve.bits[corpus][-1]
        axes.plot(curve.tokens, curve.bits[corpus], style, color=color, linewidth=2)
        axes.plot(curve.tokens[-1], end, "o", color=color, markersize=4)
        labels.append((end, f"{curve.label}\n{end:.2f}", color, "bold"))
    _scale(axes, curves, corpus)
    _label_ends(axes, labels, max(curve.tokens[-1] for curve in curves))


def _label_ends(axes: Axes, labels: list[tuple[float, str, str, str]], end: float) -> None:
    """Write the name and last value of each curve to the right of the curves, without overlap."""
    low, high = np.log(axes.get_ylim())
    previous = -np.inf
    for value, text, color, weight in sorted(labels):
        # A label takes 11 % of the height of the logarithmic axis.
        position = max(np.log(value), previous + 0.11 * (high - low))
        previous = position
        axes.annotate(
            text,
            (end, np.exp(position)),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=color,
            fontweight=weight,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _scale(axes: Axes, curves: Sequence[Curve], corpus: str) -> None:
    values = np.concatenate([curve.bits[corpus] for curve in curves])
    axes.set_yscale("log")
    axes.set_ylim(values.min() / 1.3, values.max() * 1.2)
    ticks = [tick for tick in _TICKS if values.min() / 1.3 <= tick <= values.max() * 1.2]
    axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    end = max(curve.tokens[-1] for curve in curves)
    axes.set_xlim(0, end * 1.33)
    axes.set_xticks([tick for tick in MaxNLocator(4).tick_values(0, end) if tick <= end])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set_xlabel("tokens of continual pre-training", fontsize=9.5)
    axes.set_ylabel("held-out bits per byte (log)", fontsize=9.5)
    axes.tick_params(labelsize=9)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


_TICKS = (0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6)


def _short(value: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
