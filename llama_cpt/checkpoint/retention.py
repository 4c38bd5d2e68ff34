"""Retention: the choice of the checkpoints to keep when a new checkpoint is saved.

The newest ``keep`` checkpoints are kept. If none of them is known to be healthy, the newest healthy
checkpoint among the older checkpoints is kept as well. A diverged run therefore never deletes its
last healthy checkpoint.
"""

from collections.abc import Callable, Iterable
import contextlib
import logging

from etils import epath

from llama_cpt.checkpoint import step_marks
from llama_cpt.checkpoint.step_marks import UNHEALTHY
from llama_cpt.runtime.distributed import is_primary

logger = logging.getLogger(__name__)


class Retention:
    """The health of the checkpoints in ``folder``, and the choice of the checkpoints to keep.

    A checkpoint is healthy, unhealthy or unproven. It is unproven from the call of ``expect`` for
    its step until the call of ``judge`` for its step. Otherwise it is unhealthy if ``judge``
    recorded a problem or the file ``STEP.unhealthy`` exists, and healthy if not.
    """

    def __init__(self, folder: epath.Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._unproven: set[int] = set()
        self._judged: dict[int, str] = {}
        self._warned = False
        self.also_kept: list[Callable[[list[int]], Iterable[int]]] = []
        """Functions that return the steps of additional checkpoints to keep. The argument contains
        the steps of all checkpoints in ascending order."""

    def forget_after(self, step: int) -> None:
        """Forget the health of the checkpoints of later steps than ``step``, which were removed."""
        self._unproven = {found for found in self._unproven if found <= step}
        self._judged = {s: problem for s, problem in self._judged.items() if s <= step}

    def expect(self, step: int) -> None:
        """Make the checkpoint of ``step`` unproven, unless ``judge`` was called for it already."""
        if step not in self._judged:
            self._unproven.add(step)

    def awaits(self, step: int) -> bool:
        """Return whether the checkpoint of ``step`` is unproven."""
        return step in self._unproven

    def judge(self, step: int, problem: str = "") -> None:
        """Record whether the state after ``step`` is healthy.

        ``problem`` describes why the state is unhealthy. It is empty if the state is healthy.
        """
        self._judged = {step: problem} | {s: found for s, found in self._judged.items() if found}
        self._unproven.discard(step)
        if problem:
            self.mark(step)

    def mark(self, step: int) -> None:
        """Write the file ``STEP.unhealthy`` for later attempts if ``step`` has a known problem.

        Does nothing if the checkpoint of ``step`` does not exist.
        """
        problem = self._judged.get(step)
        if not problem or not is_primary() or not (self.folder / str(step)).exists():
            return
        with contextlib.suppress(OSError):
            step_marks.put(self.folder, step, UNHEALTHY, problem)

    def kept(self, steps: list[int]) -> list[int]:
        """Return the steps of the checkpoints to keep.

        ``steps`` contains the steps of all checkpoints in ascending order.
        """
        more = {step for choose in self.also_kept if steps for step in choose(steps)}
        return sorted({*self._newest_and_healthy(steps), *more})

    def _newest_and_healthy(self, steps: list[int]) -> list[int]:
        newest, older = steps[-self.keep :], steps[: -self.keep]
        if not older:
            return newest
        bad = self._unproven | step_marks.marked(self.folder, UNHEALTHY)
        bad |= {step for step, problem in self._judged.items() if problem}
        healthy = [step for step in older if step not in bad]
        if not healthy or not bad.issuperset(newest):
            return newest
        self._warn(newest[-1], healthy[-1])
        return [healthy[-1], *newest]

    def _warn(self, newest: int, healthy: int) -> None:
        problem = self._judged.get(newest)
        if not problem or self._warned or not is_primary():
            return
        self._warned = True
        logger.warning(
            "%s: the checkpoint of step %d is kept in addition to the newest checkpoint.keep=%d, "
            "because %s. To resume from step %d, stop the run, move the later checkpoints to a "
            "different folder and lower optimizer.peak_learning_rate.",
            self.folder,
            healthy,
            self.keep,
            problem,
            healthy,
        )
