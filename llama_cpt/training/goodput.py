"""Goodput: the fraction of a run's wall time that is spent in training steps.

Every launch of a run is called an attempt. An interrupted run has several attempts.
"""

from collections.abc import Generator, Mapping, Sequence
import contextlib
import logging
import time
from typing import Any

import numpy as np

from llama_cpt.runtime.progress import duration

logger = logging.getLogger(__name__)

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
_MAX_STOPPED_SECONDS = 366 * 86400.0
"""Longest plausible time between two attempts. A longer time means that a clock is wrong."""
_CLOCK_TOLERANCE_SECONDS = 60.0
"""Difference between the clocks of two machines that is not reported."""


class Goodput:
    """A clock that attributes each second of a run to one of ``PARTS``.

    The clock starts in the part ``startup`` at the monotonic time ``started``, by default the
    current time.
    """

    def __init__(self, started: float | None = None) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        """Seconds per part since the clock started. Earlier attempts are not included."""
        self._before = dict.fromkeys(PARTS, 0.0)
        # The wall clock can be set while the process runs, so durations use the monotonic clock.
        now = time.monotonic()
        self.part, self.since = "startup", now if started is None else started
        self._started = time.time() - (now - self.since)

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
        now = time.monotonic()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    def continue_from(self, lines: Sequence[Mapping[str, Any]], first_step: int) -> None:
        """Add the seconds of earlier attempts, read from ``lines`` of ``metrics.jsonl``.

        The run resumes after ``first_step``. If ``lines`` contains no entry for this step, the time
        of the training steps up to ``first_step`` is interpolated linearly.
        """
        timed = [line for line in lines if line.get(_CLOCK) is not None]
        if not timed:
            return
        steps = [line["step"] for line in timed]
        seconds = [_seconds(line, STEP) for line in timed]
        trained = float(np.interp(first_step, steps, seconds, left=0.0))
        last = timed[-1]
        self._before = {part: _seconds(last, part) for part in PARTS}
        # Steps after the checkpoint were done but not saved, so their time counts as lost.
        self._before[STEP] = trained
        self._before["repeated"] += max(seconds[-1] - trained, 0.0)
        self._before["stopped"] += self._seconds_since(last[_CLOCK])

    def count_as_repeated(self, share: float) -> None:
        """Attribute ``share`` of the time of training steps to ``repeated`` after a rollback."""
        self.switch_to(self.part)
        lost = share * self._total_seconds()[STEP]
        self._before[STEP] -= lost
        self._before["repeated"] += lost

    def _seconds_since(self, end: float) -> float:
        """Return the seconds from ``end``, a Unix time, to the start of this clock.

        Returns 0 and logs a warning if the times show that the clocks of the two attempts disagree.
        """
        gap = self._started - end
        if 0 <= gap <= _MAX_STOPPED_SECONDS:
            return gap
        if not -_CLOCK_TOLERANCE_SECONDS <= gap <= 0:
            logger.warning(
                "the clock of this machine is %s %s the last line of metrics.jsonl, so the clock "
                "was wrong in one of the attempts; the time between the attempts counts as 0 in "
                "the goodput.",
                duration(abs(gap)),
                "after" if gap > 0 else "before",
            )
        return 0.0

    def values(self) -> dict[str, float]:
        """Return the metrics ``perf/goodput``, ``perf/unix_seconds`` and ``perf/seconds/PART``."""
        self.switch_to(self.part)
        seconds = self._total_seconds()
        spent = {_SECONDS + part: value for part, value in seconds.items() if value}
        share = seconds[STEP] / max(sum(seconds.values()), 1e-9)
        return {"perf/goodput": share, _CLOCK: time.time()} | spent

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
        """Return the seconds of each part of the wall time, summed over all attempts of the run."""
        return {part: self._before[part] + value for part, value in self.seconds.items()}


def _seconds(line: Mapping[str, Any], part: str) -> float:
    """Return the seconds of ``part`` in a line of ``metrics.jsonl``, at least 0.

    Earlier versions wrote negative seconds if the clock was set back.
    """
    return max(line.get(_SECONDS + part) or 0.0, 0.0)
