"""The forgetting alarm: held-out bits per byte compared with earlier values of the same run."""

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
    """A comparison of each evaluation with earlier evaluations of the run.

    The reference of a corpus is its value before the first step. The reference of a held-out corpus
    with the name of a corpus in ``data.additional`` is its lowest value in the run, because the run
    first improves it.

    ``samples`` maps each held-out corpus to a description of its evaluated documents. ``saved`` is
    the metadata of the checkpoint from which the run continues; empty for a new run.
    """

    def __init__(
        self, config: TrainConfig, samples: Mapping[str, str], saved: dict[str, Any] | None = None
    ) -> None:
        self.config, self.output = config.forgetting, config.output
        self.corpora = config.watched_corpora
        self.additional = {corpus.name for corpus in config.data.additional}
        self.samples = dict(samples)
        values = (saved or {}).get(METADATA, {})
        self.base: dict[str, float] = values.get("base", {})
        """Bits per byte of every held-out corpus before the first step."""
        self.lowest: dict[str, float] = values.get("lowest", self.base)
        """Lowest bits per byte of every held-out corpus."""
        self.base_samples: dict[str, str] = values.get("samples", self.samples)
        """Samples on which ``base`` and ``lowest`` were measured."""
        self.within: list[int] = values.get("within", [])
        """Steps of the newest evaluations within the limit."""

    @property
    def without_base(self) -> list[str]:
        """Names of the watched corpora whose present sample has no value before the first step."""
        return [name for name in self.corpora if not self._is_comparable(name)]

    def metadata(self) -> dict[str, Any]:
        """Return the JSON values that a checkpoint stores."""
        values = {"base": self.base, "lowest": self.lowest, "samples": self.base_samples}
        return {METADATA: values | {"within": self.within}}

    def measure_again(self, bits_per_byte: Mapping[str, float]) -> None:
        """Replace the values before the first step that do not belong to the present samples."""
        new = {n: bits for n, bits in bits_per_byte.items() if not self._is_comparable(n)}
        self.base, self.lowest = self.base | new, self.lowest | new
        self.base_samples = self.base_samples | {name: self.samples[name] for name in new}

    def newest_within(self, steps: Sequence[int]) -> list[int]:
        """Return the newest of ``steps`` that was evaluated within the limit, if there is one."""
        return sorted(set(steps) & set(self.within))[-1:]

    def observe(self, step: int, bits_per_byte: Mapping[str, float]) -> dict[str, float]:
        """Record an evaluation after ``step`` steps, and return the changes.

        The result maps the name of a watched corpus to the relative change from its reference,
        which is 0 for a new lowest value of a corpus in ``data.additional``.
        """
        if step == 0:
            self.base, self.lowest = dict(bits_per_byte), dict(bits_per_byte)
            self.base_samples = self.samples
        comparable = {n: bits for n, bits in bits_per_byte.items() if self._is_comparable(n)}
        self.lowest = self.lowest | {n: min(b, self.lowest[n]) for n, b in comparable.items()}
        references = {n: (self.lowest if n in self.additional else self.base) for n in comparable}
        changes = {
            name: bits_per_byte[name] / references[name][name] - 1
            for name in self.corpora
            if name in references and references[name][name]
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
        forgotten = {name: change for name, change in changes.items() if change > limit}
        if not forgotten:
            return
        shown = [
            f"{name} {change:+.1%} from {self._reference_words(name)}"
            for name, change in forgotten.items()
        ]
        if good := self.newest_within(saved_steps()):
            kept = (
                f"The newest checkpoint within the limit is {self.output}/checkpoints/{good[0]}. "
                "To return to it, move the later checkpoints to a different folder. "
            )
        else:
            kept = "No checkpoint was saved at an evaluation within the limit. "
        remedies = ["Lower optimizer.peak_learning_rate"]
        if forgotten.keys() - self.additional:
            remedies.append("lower data.almr")
        if forgotten.keys() & self.additional:
            remedies.append("raise the weight of the corpus in data.additional")
        message = (
            f"forgetting: after step {step}, held-out bits per byte have increased: "
            f"{', '.join(shown)}; forgetting.limit is {limit:.1%}. {kept}"
            f"{', '.join(remedies)}, or raise forgetting.limit."
        )
        if self.config.action == "stop":
            raise ForgettingError(message)
        if is_primary():
            logger.warning("%s", message)

    def _is_comparable(self, name: str) -> bool:
        """Return whether the base of a corpus was measured on its present sample."""
        return name in self.base and self.base_samples.get(name) == self.samples.get(name)

    def _reference_words(self, name: str) -> str:
        return "its lowest value" if name in self.additional else "before the first step"
