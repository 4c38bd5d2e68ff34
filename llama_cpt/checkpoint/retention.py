"""Retention: which checkpoints stay when newer ones are saved.

The newest ``keep`` stay. The newest healthy one before them stays as well, unless one of them is
known to be healthy. A diverged run therefore never deletes its last good checkpoint.
"""

import contextlib
import sys

from etils import epath

from llama_cpt.checkpoint import step_marks
from llama_cpt.checkpoint.step_marks import UNHEALTHY
from llama_cpt.runtime.distributed import is_primary


class Retention:
    """The checkpoints in ``folder`` that may be deleted, given what is known of their health.

    Saves of this process are unproven until ``judge`` is called for them, if ``expect`` was.
    Anything else counts as healthy unless it has a mark on disk.
    """

    def __init__(self, folder: epath.Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._unproven: set[int] = set()
        self._judged: dict[int, str] = {}
        self._warned = False

    def expect(self, step: int) -> None:
        """Treat ``step`` as unproven until it is judged, which may have happened already."""
        if step not in self._judged:
            self._unproven.add(step)

    def awaits(self, step: int) -> bool:
        """Return whether ``step`` is unproven."""
        return step in self._unproven

    def judge(self, step: int, problem: str = "") -> None:
        """Record that the state after ``step`` is healthy, or the ``problem`` that it has."""
        self._judged = {step: problem} | {s: found for s, found in self._judged.items() if found}
        self._unproven.discard(step)
        if problem:
            self.mark(step)

    def mark(self, step: int) -> None:
        """Write the problem of ``step`` to disk for later starts, if its checkpoint is there."""
        problem = self._judged.get(step)
        if not problem or not is_primary() or not (self.folder / str(step)).exists():
            return
        with contextlib.suppress(OSError):
            step_marks.put(self.folder, step, UNHEALTHY, problem)

    def kept(self, steps: list[int]) -> list[int]:
        """Return the members of ``steps`` (ascending) that must stay."""
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
        print(
            f"warning: {self.folder}: the checkpoint of step {healthy} is kept beyond "
            f"checkpoint.keep={self.keep} because {problem}. To resume from step {healthy}, stop "
            "the run, move the later checkpoints away and lower optimizer.peak_learning_rate.",
            file=sys.stderr,
        )
