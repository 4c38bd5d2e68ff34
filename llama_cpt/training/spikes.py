"""The detection of spikes: steps with a loss or gradient norm far above that of recent steps.

The limits of a step depend only on the values of earlier steps, which are part of each checkpoint.
A run that was killed after a decision and before the next checkpoint therefore computes the same
decision again. The values of the step directly before are not used, because they are not known yet
when the step is dispatched.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
import math
from typing import Any

import numpy as np

from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.config.monitors import SpikeConfig
from llama_cpt.training.train_step import Limits

METADATA = "spikes"
"""Key of the monitor's values in the metadata of a checkpoint."""
MAX_RECORDS = 100
"""Number of the newest spikes that are described in checkpoints and in ``spikes.json``."""
_DEVIATIONS_PER_MAD = 1.4826
# The loss of a batch varies less than the norm of its gradient.
_LEAST_DEVIATIONS = Limits(loss=0.01, grad_norm=0.05)
_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Spike:
    """A step whose loss or gradient norm exceeds its limit or is not finite."""

    step: int
    """Number of the step, counted from 1."""
    first_row: int
    """Index in the run of the first row of the step's batch."""
    loss: float
    grad_norm: float
    loss_limit: float
    grad_norm_limit: float

    def __str__(self) -> str:
        """Return a clause with the values and their limits."""
        limits = (self.loss_limit, self.grad_norm_limit)
        shown = [f" (limit {limit:.4g})" if limit < _LARGEST else "" for limit in limits]
        return (
            f"spike at step {self.step}: loss {self.loss:.4g}{shown[0]}, "
            f"gradient norm {self.grad_norm:.4g}{shown[1]}"
        )


class RollbackRequest(Exception):  # noqa: N818 - a request, not an error
    """A request to return to an earlier checkpoint, because ``spike`` was found."""

    def __init__(self, spike: Spike) -> None:
        super().__init__(str(spike))
        self.spike = spike


class SpikeMonitor:
    """The values of recent steps, the spikes found, and the rows that rollbacks skip.

    ``batch_rows`` is the number of rows per step. ``saved`` is the result of ``metadata`` in the
    checkpoint from which the run continues, or None.
    """

    def __init__(
        self, config: SpikeConfig, batch_rows: int, saved: dict[str, Any] | None = None
    ) -> None:
        self.config, self.batch_rows, saved = config, batch_rows, saved or {}
        self.count: int = saved.get("count", 0)
        """Number of spikes in the run, including those in steps that were rolled back."""
        self.actions: int = saved.get("actions", 0)
        """Number of skipped updates and rollbacks in the run."""
        self.skipped_rows: list[list[int]] = saved.get("skipped_rows", [])
        """Ranges ``[first, end]`` of rows of the run that rollbacks skip; ``end`` is exclusive."""
        self.records: list[dict[str, Any]] = saved.get("records", [])
        """Descriptions of the newest spikes."""
        self.undescribed: list[Spike] = []
        """Spikes for which ``record`` has not been called."""
        # One more step than the window, because the step before the checked step is not used.
        self._recent: deque[tuple[int, float, float]] = deque(
            map(tuple, saved.get("recent", [])), config.window + 1
        )

    def metadata(self) -> dict[str, Any]:
        """Return the JSON values that a checkpoint stores; empty if they are not needed."""
        if self.config.action == "none" and not self.skipped_rows:
            return {}
        return {
            METADATA: {
                "count": self.count,
                "actions": self.actions,
                "skipped_rows": self.skipped_rows,
                "records": self.records,
                "recent": [list(values) for values in self._recent],
            }
        }

    def rows_before(self, step: int) -> int:
        """Return the index in the run of the first row of ``step``, counted from 0.

        All rollbacks so far must have returned to ``step`` or to an earlier step.
        """
        return step * self.batch_rows + sum(end - first for first, end in self.skipped_rows)

    def limits(self, step: int) -> Limits:
        """Return the limits of step number ``step``, counted from 1."""
        values = [found[1:] for found in self._recent if found[0] <= step - 2]
        values = values[-self.config.window :]
        if len(values) < self.config.window:
            return Limits(_LARGEST, _LARGEST)
        losses, norms = zip(*values, strict=True)
        return Limits(
            _limit(losses, self.config.loss_threshold, _LEAST_DEVIATIONS.loss),
            _limit(norms, self.config.grad_norm_threshold, _LEAST_DEVIATIONS.grad_norm),
        )

    def observe(self, step: int, loss: float, grad_norm: float) -> bool:
        """Record the values of step number ``step``, counted from 1; return whether it is a spike.

        Steps must be observed in order. Raises RollbackRequest if the run has to be rolled back.
        Raises DivergedError if a value is not finite and ``action`` is ``none`` or ``log``, or if
        the run had ``max_actions`` skipped updates or rollbacks already.
        """
        action = self.config.action
        acts = action in ("skip", "rollback")
        for name, value in (("loss", loss), ("grad_norm", grad_norm)):
            if not acts and not math.isfinite(value):
                raise DivergedError(f"{name} of step {step} is {value}.")
        if action == "none":
            return False
        limits = self.limits(step)
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self._recent.append((step, loss, grad_norm))
        # The compiled step compares the same float32 values.
        if loss <= limits.loss and grad_norm <= limits.grad_norm:
            return False
        first_row = self.rows_before(step - 1)
        spike = Spike(step, first_row, loss, grad_norm, float(limits[0]), float(limits[1]))
        if acts and self.actions >= self.config.max_actions:
            raise DivergedError(
                f"{spike}, after spikes.max_actions={self.actions} spikes with action {action}; "
                "spikes.json in the output folder contains their rows. Remove bad documents, or "
                "raise a threshold in spikes or spikes.max_actions."
            )
        self.count += 1
        self.actions += acts
        self.undescribed.append(spike)
        if action == "rollback":
            raise RollbackRequest(spike)
        return True

    def rolled_back(self, spike: Spike, saved: dict[str, Any], step: int) -> "SpikeMonitor":
        """Return the monitor after a rollback to ``step`` because of ``spike``.

        ``saved`` is the metadata of the checkpoint of ``step``, or empty at the start of a run.
        """
        after = SpikeMonitor(self.config, self.batch_rows, saved.get(METADATA))
        after.count, after.actions = self.count, self.actions
        after.records, after.undescribed = self.records, self.undescribed
        skipped = [after.rows_before(step), self.rows_before(spike.step)]
        after.skipped_rows = [*after.skipped_rows, skipped]
        return after

    def record(self, spike: Spike, rows: list[dict[str, Any]]) -> None:
        """Add ``spike`` to the records; ``rows`` describes the rows with the largest loss."""
        self.undescribed.remove(spike)
        values = asdict(spike) | {"action": self.config.action, "rows": rows}
        self.records = [*self.records, _json_numbers(values)][-MAX_RECORDS:]


def _limit(values: Sequence[float], threshold: float, least: float) -> np.float32:
    """Return the median plus ``threshold`` standard deviations, which are estimated from the MAD.

    ``least`` is the minimum of the standard deviation, as a fraction of the median.
    """
    median = float(np.median(values))
    deviation = _DEVIATIONS_PER_MAD * float(np.median(np.abs(np.subtract(values, median))))
    deviation = max(deviation, least * abs(median))
    return np.float32(min(median + threshold * deviation, float(_LARGEST)))


def _json_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with None in place of NaN and infinity, which JSON does not have."""
    bad = {name for name, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
    return {name: None if name in bad else value for name, value in values.items()}
