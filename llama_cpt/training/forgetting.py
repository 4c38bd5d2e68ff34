"""The forgetting alarm: held-out bits per byte compared with their values before training."""

from collections.abc import Callable, Mapping, Sequence
import logging
from typing import Any

from llama_cpt.config.schema import TrainConfig
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError

logger = logging.getLogger(__name__)

METADATA = "forgetting"
"""Key of the alarm's values in the metadata of a checkpoint."""
_MAX_STEPS = 100
"""Number of evaluations within the limit that a checkpoint records."""


class ForgettingError(UserError):
    """Error for a run that forgot more than ``forgetting.limit`` permits."""


class ForgettingAlarm:
    """A comparison of each evaluation with the evaluation before the first step.

    ``saved`` is the metadata of the checkpoint from which the run continues; empty for a new run.
    Raises UserError if it lacks the values before the first step.
    """

    def __init__(self, config: TrainConfig, saved: dict[str, Any] | None = None) -> None:
        self.config, self.output = config.forgetting, config.output
        self.corpora = config.watched_corpora
        values = (saved or {}).get(METADATA, {})
        absent = [name for name in self.corpora if name not in values.get("base", {})]
        if absent and saved:
            raise UserError(
                f"forgetting.action={self.config.action}: the checkpoints of the run contain no "
                f"held-out results of {', '.join(absent)} before the first step; set "
                "forgetting.action=none, or set a different output folder to start a new run."
            )
        self.base: dict[str, float] = values.get("base", {})
        """Bits per byte of every held-out corpus before the first step."""
        self.within: list[int] = values.get("within", [])
        """Steps of the newest evaluations within the limit."""

    def metadata(self) -> dict[str, Any]:
        """Return the JSON values that a checkpoint stores."""
        return {METADATA: {"base": self.base, "within": self.within}}

    def newest_within(self, steps: Sequence[int]) -> list[int]:
        """Return the newest of ``steps`` that was evaluated within the limit, if there is one."""
        return sorted(set(steps) & set(self.within))[-1:]

    def observe(self, step: int, bits_per_byte: Mapping[str, float]) -> dict[str, float]:
        """Record an evaluation after ``step`` steps, and return the changes relative to the base.

        The result maps the name of a watched corpus to a relative change. The evaluation of step 0
        is the base.
        """
        if step == 0:
            self.base = dict(bits_per_byte)
        changes = {
            name: bits_per_byte[name] / self.base[name] - 1
            for name in self.corpora
            if self.base.get(name)
        }
        if changes and max(changes.values()) <= self.config.limit:
            self.within = [*self.within, step][-_MAX_STEPS:]
        return changes

    def act(
        self, step: int, changes: Mapping[str, float], saved_steps: Callable[[], Sequence[int]]
    ) -> None:
        """Warn or stop if one of ``changes`` after ``step`` steps exceeds the limit.

        ``saved_steps`` returns the steps of the checkpoints. Raises ForgettingError if the action
        is ``stop``.
        """
        limit = self.config.limit
        forgotten = [f"{name} {change:+.1%}" for name, change in changes.items() if change > limit]
        if not forgotten:
            return
        if good := self.newest_within(saved_steps()):
            kept = (
                f"The newest checkpoint within the limit is {self.output}/checkpoints/{good[0]}. "
                "To return to it, move the later checkpoints to a different folder. "
            )
        else:
            kept = "No checkpoint was saved at an evaluation within the limit. "
        message = (
            f"forgetting: after step {step}, held-out bits per byte have changed since the start: "
            f"{', '.join(forgotten)}; forgetting.limit is {limit:.1%}. {kept}"
            "Lower optimizer.peak_learning_rate or data.almr, or raise forgetting.limit."
        )
        if self.config.action == "stop":
            raise ForgettingError(message)
        if is_primary():
            logger.warning("%s", message)
