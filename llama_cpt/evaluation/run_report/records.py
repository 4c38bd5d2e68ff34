"""Records of training runs: the config and the metrics of a run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import json
from typing import Any

from etils import epath
from jaxtyping import Float
import numpy as np

from llama_cpt.config.fields import flat_fields, to_dict
from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import FILE, read_lines

HELDOUT = "eval/{}/bits_per_byte"
TRAINING = "train/{}/loss"
GROUPS = ("additional", "original")
"""Names in metrics of training losses that are means over a group of corpora."""
SECONDS = "perf/seconds/"


@dataclass(frozen=True)
class Series:
    """The values of one metric of a run."""

    steps: Float[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]


@dataclass(frozen=True)
class RunRecord:
    """The config and the metrics of a run."""

    name: str
    config: TrainConfig
    lines: Sequence[Mapping[str, Any]]
    """The lines of ``metrics.jsonl``, in the order of the steps."""

    @property
    def steps(self) -> int:
        """The number of steps done."""
        return int(self.lines[-1]["step"])

    @property
    def tokens_per_step(self) -> int:
        """The number of tokens per step, including padding."""
        return self.config.global_batch_size * self.config.data.sequence_length

    @property
    def flops_per_step(self) -> float:
        """The model FLOPs per step (``model_flops_per_token``)."""
        length = self.config.data.sequence_length
        frozen = self.config.lora is not None
        per_token = model_flops_per_token(self.config.architecture, length, frozen=frozen)
        return per_token * self.tokens_per_step

    def series(self, metric: str) -> Series:
        """Return the finite values of ``metric``."""
        points = [(one["step"], one[metric]) for one in self.lines if one.get(metric) is not None]
        steps, values = np.array(points, float).reshape(-1, 2).T
        return Series(steps, values)

    def last(self, metric: str) -> float | None:
        """Return the last finite value of ``metric``, or None if the run has no such value."""
        values = self.series(metric).values
        return float(values[-1]) if len(values) else None

    def corpora(self, pattern: str) -> list[str]:
        """Return the names of the corpora with a metric of the form ``pattern``."""
        start, end = pattern.split("{}")
        found = dict.fromkeys(
            key.removeprefix(start).removesuffix(end)
            for line in self.lines
            for key in line
            if key.startswith(start) and key.endswith(end) and len(key) > len(start) + len(end)
        )
        return [name for name in found if name not in GROUPS or pattern != TRAINING]

    @property
    def seconds(self) -> dict[str, float]:
        """The wall time of each part of the run in seconds, from the last line that has it."""
        for line in reversed(self.lines):
            parts = {
                key.removeprefix(SECONDS): float(value)
                for key, value in line.items()
                if key.startswith(SECONDS) and value is not None
            }
            if parts:
                return parts
        return {}


def read_run(name: str, folder: str) -> RunRecord:
    """Return the record of the run in ``folder``.

    Raises UserError if ``folder`` is not the folder of a run that has written metrics.
    """
    path = epath.Path(folder)
    for file in ("config.json", FILE):
        if not (path / file).exists():
            raise UserError(f"{folder}: not the folder of a training run (it has no {file}).")
    config = load_config(str(path / "config.json"))
    lines = read_lines(path / FILE)
    if not lines:
        raise UserError(f"{path / FILE}: has no metrics yet; wait for the first step of the run.")
    return RunRecord(name, config, lines)


def union(runs: Sequence[RunRecord], pattern: str) -> list[str]:
    """Return the corpora of all runs with a metric of the form ``pattern``."""
    return list(dict.fromkeys(name for run in runs for name in run.corpora(pattern)))


def config_differences(runs: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    """Return a table of the config fields whose values differ; the first row is the header.

    A field that a config does not have is empty in its column. ``output`` is left out.
    """
    flat = [flat_fields(to_dict(run.config)) for run in runs]
    fields = dict.fromkeys(field for values in flat for field in values if field != "output")
    rows = [("field", *(run.name for run in runs))]
    for field in fields:
        values = [_as_text(one.get(field, "")) for one in flat]
        if len(set(values)) > 1:
            rows.append((field, *values))
    return rows


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
