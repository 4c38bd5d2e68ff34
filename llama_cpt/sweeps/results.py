"""Results of trials: a status file per trial, and a table ``results.csv`` per sweep."""

from collections.abc import Hashable, Sequence
import csv
from dataclasses import asdict, dataclass
import io
import json
from typing import Any, Literal

from etils import epath

from llama_cpt.config.sweep import SweepConfig
from llama_cpt.model.flops import non_embedding_parameters
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError, first_line
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.metrics import FILE, has_evaluation, read_lines
from llama_cpt.sweeps.trials import Trial, mean_almr, mixture_order, tokens_per_step

COLUMNS = (
    "run, pair, parameters, tokens, step, almr, mixture_order, learning_rate, schedule, "
    "batch_tokens, seed, tokenizer, corpus, group, loss, bits_per_byte, base_loss, "
    "base_bits_per_byte"
).split(", ")
STATUS_FILE = "trial.json"
"""Name of the status file in a trial's output folder."""


@dataclass(frozen=True)
class TrialStatus:
    """The status of a trial that has ended."""

    status: Literal["done", "diverged", "failed"]
    reason: str = ""
    """Error message; empty if ``status`` is ``done``."""
    tokenizer: str = ""
    """Fingerprint of the trial's tokenizer."""
    seconds: float = 0.0
    """Wall time of the whole trial in seconds."""
    step_seconds: float = 0.0
    """Wall time of the trial's training steps in seconds."""
    evaluation_seconds: float = 0.0
    """Wall time of the trial's held-out evaluations in seconds."""
    schedule_version: int = 1
    """Version of the trial's learning-rate schedule (``training.optimizer.SCHEDULE_VERSION``)."""


def read_status(trial: Trial) -> TrialStatus | None:
    """Return the status of ``trial``, or None if the trial has not ended.

    Raises UserError if the status file is damaged.
    """
    file = epath.Path(trial.config.output) / STATUS_FILE
    if not file.exists():
        return None
    remedy = "delete it to train the trial again"
    values = read_json_object(str(file), remedy)
    try:
        status = TrialStatus(**values)
        _validate_status(status)
    except TypeError as error:
        raise UserError(
            f"{file}: is not the status of a trial ({first_line(error)}); {remedy}."
        ) from None
    return status


def _validate_status(status: TrialStatus) -> None:
    """Raise TypeError if a value of ``status`` does not have the type of its field."""
    if status.status not in ("done", "diverged", "failed"):
        raise TypeError(f"status={status.status!r} is unknown")
    for name, kinds in (
        ("reason", (str,)),
        ("tokenizer", (str,)),
        ("seconds", (int, float)),
        ("step_seconds", (int, float)),
        ("evaluation_seconds", (int, float)),
        ("schedule_version", (int,)),
    ):
        if type(getattr(status, name)) not in kinds:
            raise TypeError(f"{name}={getattr(status, name)!r} has the wrong type")


def write_status(trial: Trial, status: TrialStatus) -> None:
    """Write the status file in the trial's output folder.

    The file marks the trial as ended, so it must be written after the metrics.
    """
    folder = epath.Path(trial.config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / STATUS_FILE, (json.dumps(asdict(status), indent=1) + "\n").encode())


def initial_state_key(trial: Trial) -> tuple[Hashable, ...]:
    """Return the values in the trial's config that determine the initial held-out losses.

    Trials with equal keys have the same initial losses.
    """
    config = trial.config
    data, weights = config.data, config.init_from or f"random with seed {config.seed}"
    evaluation = data.tokenizer, data.heldout, data.sequence_length, config.evaluation.documents
    return config.architecture, weights, *evaluation


def read_evaluations(trial: Trial) -> list[dict[str, Any]]:
    """Return the lines with held-out losses in the trial's ``metrics.jsonl``, in order of steps."""
    return [line for line in _metrics(trial) if has_evaluation(line)]


def heldout_losses(sweep: SweepConfig, trial: Trial) -> dict[str, float]:
    """Return the last held-out bits per byte of each corpus, in the order of the groups.

    The key is the group, followed by the corpus if the group has several held-out corpora. The dict
    is empty if the trial has not been evaluated.
    """
    evaluations, groups = read_evaluations(trial), sweep.groups()
    found = {}
    for corpus, group in sorted(groups.items(), key=lambda one: one[1]) if evaluations else ():
        value = evaluations[-1].get(f"eval/{corpus}/bits_per_byte")
        if value is not None:
            several = list(groups.values()).count(group) > 1
            found[f"{group} {corpus}" if several else group] = value
    return found


def step_seconds(trial: Trial) -> float:
    """Return the wall time of the trial's training steps in seconds.

    The time is computed from the throughput in ``metrics.jsonl``.
    """
    total, last = 0.0, trial.first_step
    for line in _metrics(trial):
        if speed := line.get("perf/tokens_per_second"):
            total += (line["step"] - last) * tokens_per_step(trial.config) / speed
            last = line["step"]
    return total


def evaluation_seconds(trial: Trial) -> float:
    """Return the wall time of the trial's held-out evaluations in seconds."""
    return sum((line.get("perf/evaluation_seconds") or 0.0 for line in _metrics(trial)), 0.0)


def write_results(sweep: SweepConfig, trials: Sequence[Trial]) -> epath.Path:
    """Write ``results.csv`` with the evaluations of all ended trials, and return its path.

    A diverged trial has an additional last row per corpus, in which the losses are empty. Failed
    trials are omitted.
    """
    base: dict[tuple[Hashable, ...], dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for trial in trials:
        if (status := read_status(trial)) is None or status.status == "failed":
            continue
        evaluations, key = read_evaluations(trial), initial_state_key(trial)
        # A trial that continues from its parent's checkpoint does not evaluate the initial weights.
        if evaluations and evaluations[0]["step"] == 0:
            base[key] = evaluations[0]
        for corpus in sweep.groups().items():
            rows += _rows(sweep, trial, status, corpus, evaluations, base.get(key, {}))
    out = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    file = epath.Path(sweep.output) / "results.csv"
    write_atomic(file, out.getvalue().encode())
    return file


def _metrics(trial: Trial) -> list[dict[str, Any]]:
    return read_lines(epath.Path(trial.config.output) / FILE)


def _rows(
    sweep: SweepConfig,
    trial: Trial,
    status: TrialStatus,
    corpus: tuple[str, str],
    evaluations: Sequence[dict[str, Any]],
    base: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return one row of ``results.csv`` per evaluation of a trial on one corpus.

    ``corpus`` is (corpus name, group), and ``base`` contains the metrics of the initial weights.
    """
    config, (name, group) = trial.config, corpus
    constant = {
        # The name starts with the sweep's name, because trial names are unique only within a sweep.
        "run": f"{sweep.output.rstrip('/').rsplit('/', 1)[-1]}/{trial.name}",
        "pair": sweep.pair,
        "parameters": non_embedding_parameters(config.architecture),
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
