"""Goodput: the fraction of a run's wall time that is spent in training steps.

Every launch of a run is called an attempt. An interrupted run has several attempts.
"""

from collections.abc import Generator, Mapping, Sequence
import contextlib
import time
from typing import Any

import numpy as np

from llama_cpt.runtime.progress import duration

STEP = "step"
PARTS: tuple[str, ...] = (
    STEP,
    "startup",
    "restore",
    "compile",
    "data",
    "evaluation",
    "save",
    "trace",
    "repeated",
    "stopped",
)
"""Names of the parts into which a run's wall time is divided.

``step`` is the time of training steps and counts as goodput. ``data`` is the time spent waiting for
rows. ``repeated`` is the time of steps that an attempt did after its last checkpoint, and that
the next attempt did again. ``stopped`` is the time from the last metrics of an attempt to the
launch of the next attempt.
"""

_SECONDS, _CLOCK = "perf/seconds/", "perf/unix_seconds"


class Goodput:
    """A clock that attributes each second of a run to one of ``PARTS``.

    The clock starts in the part ``startup`` at the Unix time ``started``, by default the
    current time.
    """

    def __init__(self, started: float | None = None) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        """Seconds per part since the clock started. Earlier attempts are not included."""
        self._before = dict.fromkeys(PARTS, 0.0)
        self.part, self.since = "startup", time.time() if started is None else started
        self._started = self.since

    @contextlib.contextmanager
    def measure(self, part: str) -> Generator[None]:
        """Context manager that attributes the time of its block to ``part``."""
        outer = self.part
        self.switch_to(part)
        try:
            yield
        finally:
            self.switch_to(outer)

    def switch_to(self, part: str) -> None:
        """Attribute the time from now on to ``part``."""
        now = time.time()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    def continue_from(self, lines: Sequence[Mapping[str, Any]], first_step: int) -> None:
        """Add the seconds of earlier attempts, read from ``lines`` of ``metrics.jsonl``.

        The run resumes after ``first_step``. If ``lines`` contains no entry for this step, the time
        of the training steps up to ``first_step`` is interpolated linearly.
        """
        timed = [line for line in lines if _CLOCK in line]
        if not timed:
            return
        steps = [line["step"] for line in timed]
        seconds = [line.get(_SECONDS + STEP, 0.0) for line in timed]
        trained = float(np.interp(first_step, steps, seconds, left=0.0))
        last = timed[-1]
        self._before = {part: last.get(_SECONDS + part, 0.0) for part in PARTS}
        # Steps after the checkpoint were done but not saved, so their time counts as lost.
        self._before[STEP] = trained
        self._before["repeated"] += seconds[-1] - trained
        self._before["stopped"] += max(self._started - last[_CLOCK], 0.0)

    def values(self) -> dict[str, float]:
        """Return the metrics ``perf/goodput``, ``perf/unix_seconds`` and ``perf/seconds/PART``."""
        self.switch_to(self.part)
        seconds = self._total_seconds()
        spent = {_SECONDS + part: value for part, value in seconds.items() if value}
        share = seconds[STEP] / max(sum(seconds.values()), 1e-9)
        return {"perf/goodput": share, _CLOCK: self.since} | spent

    def summary(self) -> str:
        """Return one line that summarizes the wall time of the run.

        The line contains the goodput, the wall time, and the fraction of the wall time in each part
        except ``step``. A fraction that rounds to 0.0 % is omitted.
        """
        share = self.values()["perf/goodput"]
        seconds = self._total_seconds()
        total = max(sum(seconds.values()), 1e-9)
        lost = sorted(((value, part) for part, value in seconds.items()), reverse=True)
        parts = [f"{part} {value / total:.1%}" for value, part in lost if part != STEP]
        shown = ", ".join(part for part in parts if not part.endswith(" 0.0%"))
        return f"goodput {share:.1%} of {duration(total)}" + (f"; {shown}" if shown else "")

    def _total_seconds(self) -> dict[str, float]:
        """Return the seconds per part, summed over all attempts of the run."""
        return {part: self._before[part] + value for part, value in self.seconds.items()}
