"""Results of trials: the status file of each, and ``results.csv`` over all of them."""

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
    """The result of a trial that has ended."""

    status: Literal["done", "diverged", "failed"]
    reason: str = ""
    tokenizer: str = ""
    """The fingerprint of its tokenizer."""
    seconds: float = 0.0
    """Wall time of the whole trial."""
    step_seconds: float = 0.0
    """Wall time of its training steps."""
    evaluation_seconds: float = 0.0
    """Wall time of its held-out evaluations."""


def read_status(trial: Trial) -> TrialStatus | None:
    """Return the trial's status, or None if it has not ended."""
    file = epath.Path(trial.config.output) / STATUS_FILE
    return TrialStatus(**json.loads(file.read_text())) if file.exists() else None


def write_status(trial: Trial, status: TrialStatus) -> None:
    """Write the status next to the trial's metrics, after them: its presence means the end."""
    folder = epath.Path(trial.config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / STATUS_FILE, (json.dumps(asdict(status), indent=1) + "\n").encode())


def initial_state_key(trial: Trial) -> tuple[Hashable, ...]:
    """Return a key over all that the initial held-out losses depend on; equal keys share them."""
    config = trial.config
    data, weights = config.data, config.init_from or f"random with seed {config.seed}"
    evaluation = data.tokenizer, data.heldout, data.sequence_length, config.evaluation.documents
    return config.model, weights, *evaluation


def read_evaluations(trial: Trial) -> list[dict[str, Any]]:
    """Return the lines of the trial's ``metrics.jsonl`` with held-out losses, by step."""
    lines = _metrics(trial)
    return [line for line in lines if any(key.startswith("eval/") for key in line)]


def group_losses(sweep: SweepConfig, trial: Trial) -> dict[str, float]:
    """Return group -> mean of its corpora's last held-out bits per byte, {} if not evaluated."""
    evaluations, groups = read_evaluations(trial), sweep.groups()
    if not evaluations:
        return {}
    by_group: dict[str, list[float]] = {}
    for corpus, group in groups.items():
        by_group.setdefault(group, []).append(evaluations[-1][f"eval/{corpus}/bits_per_byte"])
    return {group: sum(values) / len(values) for group, values in sorted(by_group.items())}


def step_seconds(trial: Trial) -> float:
    """Return the seconds of the trial's training steps, from the throughput in its metrics."""
    total, last = 0.0, trial.first_step
    for line in _metrics(trial):
        if speed := line.get("perf/tokens_per_second"):
            total += (line["step"] - last) * tokens_per_step(trial.config) / speed
            last = line["step"]
    return total


def evaluation_seconds(trial: Trial) -> float:
    """Return the seconds of the trial's held-out evaluations."""
    return sum((line.get("perf/evaluation_seconds", 0.0) for line in _metrics(trial)), 0.0)


def write_results(sweep: SweepConfig, trials: Sequence[Trial]) -> epath.Path:
    """Write ``results.csv`` of all trials that have ended and return its path.

    A diverged trial gets a last row with empty losses. Trials that failed are left out.
    """
    base: dict[tuple[Hashable, ...], dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for trial in trials:
        if (status := read_status(trial)) is None or status.status == "failed":
            continue
        evaluations, key = read_evaluations(trial), initial_state_key(trial)
        # A trial that continues another one has no evaluation of the initial weights of its own.
        if evaluations and evaluations[0]["step"] == 0:
            base[key] = evaluations[0]
        for corpus in sweep.groups().items():
            rows += _rows(sweep, trial, status, corpus, evaluations, base.get(key, {}))
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
    status: TrialStatus,
    corpus: tuple[str, str],
    evaluations: Sequence[dict[str, Any]],
    base: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return the rows of one trial for one (corpus, group), one per evaluation."""
    config, (name, group) = trial.config, corpus
    constant = {
        # With the sweep's name: sweeps of other pairs and sizes have trials of the same name.
        "run": f"{sweep.output.rstrip('/').rsplit('/', 1)[-1]}/{trial.name}",
        "pair": sweep.pair,
        "parameters": non_embedding_parameters(config.model),
        "almr": float(mean_almr(config)),
        "mixture_order": mixture_order(config),
        "learning_rate": config.optimizer.peak_learning_rate,
        "schedule": config.optimizer.schedule,
        "batch_tokens": tokens_per_step(config),
        "seed": config.seed,
        "tokenizer": status.tokenizer,
        "corpus": name,
        "group": group,
        "base_loss": base.get(f"eval/{name}/loss", ""),
        "base_bits_per_byte": base.get(f"eval/{name}/bits_per_byte", ""),
    }
    if status.status == "diverged":
        evaluations = [*evaluations, {"step": config.num_steps}]
    return [
        constant
        | {
            "step": line["step"],
            "tokens": line["step"] * tokens_per_step(config),
            "loss": line.get(f"eval/{name}/loss", ""),
            "bits_per_byte": line.get(f"eval/{name}/bits_per_byte", ""),
        }
        for line in evaluations
    ]
