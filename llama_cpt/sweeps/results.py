"""What became of trials: a note each, and ``results.csv`` over all of them."""

from collections.abc import Hashable, Sequence
import csv
from dataclasses import asdict, dataclass
import io
import json
from typing import Any, Literal

from etils import epath

from llama_cpt.config.sweep import SweepConfig
from llama_cpt.model.flops import non_embedding_parameters
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.metrics import FILE
from llama_cpt.sweeps.trials import Trial, mean_almr, mixture_order, tokens_per_step

COLUMNS = (
    "run, pair, parameters, tokens, step, almr, mixture_order, learning_rate, schedule, "
    "batch_tokens, seed, tokenizer, corpus, group, loss, bits_per_byte, base_loss, "
    "base_bits_per_byte"
).split(", ")
STATUS_FILE = "trial.json"


@dataclass(frozen=True)
class TrialStatus:
    """How a trial ended."""

    status: Literal["done", "diverged", "failed"]
    reason: str = ""
    tokenizer: str = ""
    """Its fingerprint."""
    seconds: float = 0.0
    """All of the trial, from its config to its last number."""
    step_seconds: float = 0.0
    """Of its training steps alone."""
    evaluation_seconds: float = 0.0


def read_status(trial: Trial) -> TrialStatus | None:
    """None for a trial that has not ended."""
    file = epath.Path(trial.config.output) / STATUS_FILE
    return TrialStatus(**json.loads(file.read_text())) if file.exists() else None


def write_status(trial: Trial, note: TrialStatus) -> None:
    """Beside the trial's numbers; written last, so that what has one has ended."""
    folder = epath.Path(trial.config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / STATUS_FILE, (json.dumps(asdict(note), indent=1) + "\n").encode())


def initial_state_key(trial: Trial) -> tuple[Hashable, ...]:
    """What held-out losses before its first step depend on: trials that agree share them."""
    config = trial.config
    data, weights = config.data, config.init_from or f"drawn with seed {config.seed}"
    measured = data.tokenizer, data.heldout, data.sequence_length, config.evaluation.documents
    return config.model, weights, *measured


def read_evaluations(trial: Trial) -> list[dict[str, Any]]:
    """The lines of its ``metrics.jsonl`` that hold held-out losses, by step."""
    lines = _metrics(trial)
    return [line for line in lines if any(key.startswith("eval/") for key in line)]


def group_losses(sweep: SweepConfig, trial: Trial) -> dict[str, float]:
    """Last held-out bits per byte of each group, the mean of its corpora; {} before the first."""
    measured, groups = read_evaluations(trial), sweep.groups()
    if not measured:
        return {}
    found: dict[str, list[float]] = {}
    for corpus, group in groups.items():
        found.setdefault(group, []).append(measured[-1][f"eval/{corpus}/bits_per_byte"])
    return {group: sum(values) / len(values) for group, values in sorted(found.items())}


def step_seconds(trial: Trial) -> float:
    """Of its training steps alone, by the throughput in its metrics."""
    total, last = 0.0, trial.first_step
    for line in _metrics(trial):
        if speed := line.get("perf/tokens_per_second"):
            total += (line["step"] - last) * tokens_per_step(trial.config) / speed
            last = line["step"]
    return total


def evaluation_seconds(trial: Trial) -> float:
    """Of its held-out evaluations."""
    return sum((line.get("perf/evaluation_seconds", 0.0) for line in _metrics(trial)), 0.0)


def write_results(sweep: SweepConfig, trials: Sequence[Trial]) -> epath.Path:
    """``results.csv`` of the trials that have ended; a diverged one's last losses are empty."""
    base: dict[tuple[Hashable, ...], dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for trial in trials:
        if (note := read_status(trial)) is None or note.status == "failed":
            continue
        measured, weights = read_evaluations(trial), initial_state_key(trial)
        if measured and measured[0]["step"] == 0:
            base[weights] = measured[0]
        for corpus in sweep.groups().items():
            rows += _rows(sweep, trial, note, corpus, measured, base.get(weights, {}))
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    file = epath.Path(sweep.output) / "results.csv"
    write_atomic(file, out.getvalue().encode())
    return file


def _metrics(trial: Trial) -> list[dict[str, Any]]:
    file = epath.Path(trial.config.output) / FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _rows(
    sweep: SweepConfig,
    trial: Trial,
    note: TrialStatus,
    corpus: tuple[str, str],
    measured: Sequence[dict[str, Any]],
    start: dict[str, Any],
) -> list[dict[str, Any]]:
    config, (name, group) = trial.config, corpus
    constant = {
        # Sweeps of other pairs and sizes have trials of the same name.
        "run": f"{sweep.output.rstrip('/').rsplit('/', 1)[-1]}/{trial.name}",
        "pair": sweep.pair,
        "parameters": non_embedding_parameters(config.model),
        "almr": float(mean_almr(config)),
        "mixture_order": mixture_order(config),
        "learning_rate": config.optimizer.peak_learning_rate,
        "schedule": config.optimizer.schedule,
        "batch_tokens": tokens_per_step(config),
        "seed": config.seed,
        "tokenizer": note.tokenizer,
        "corpus": name,
        "group": group,
        "base_loss": start.get(f"eval/{name}/loss", ""),
        "base_bits_per_byte": start.get(f"eval/{name}/bits_per_byte", ""),
    }
    if note.status == "diverged":
        measured = [*measured, {"step": config.num_steps}]
    return [
        constant
        | {
            "step": line["step"],
            "tokens": line["step"] * tokens_per_step(config),
            "loss": line.get(f"eval/{name}/loss", ""),
            "bits_per_byte": line.get(f"eval/{name}/bits_per_byte", ""),
        }
        for line in measured
    ]
