"""Goodput: the share of a run's wall time that trained, and where the rest of the time went."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import time
from typing import Any

import numpy as np

from llama_cpt.runtime.progress import duration

STEP = "step"
PARTS = (
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
"""Names of the parts. ``data``: a step waits for rows. ``repeated``: steps that are trained again
because they were not saved. ``stopped``: from the last line of metrics to the next start."""

_SECONDS, _CLOCK = "perf/seconds/", "perf/unix_seconds"


class Goodput:
    """A clock that attributes every second to one part; it starts in ``startup``."""

    def __init__(self, started: float | None = None) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        """Seconds of this start by part."""
        self._before = dict.fromkeys(PARTS, 0.0)
        self.part, self.since = "startup", time.time() if started is None else started
        self._started = self.since

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Context manager that attributes the seconds inside to ``part``."""
        outer = self.part
        self.switch_to(part)
        try:
            yield
        finally:
            self.switch_to(outer)

    def switch_to(self, part: str) -> None:
        """Attribute the seconds from now on to ``part``."""
        now = time.time()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    def continue_from(self, lines: Sequence[Mapping[str, Any]], first_step: int) -> None:
        """Add the seconds of earlier starts from the ``lines`` of metrics of a resumed run.

        The run resumes after ``first_step``; if that step has no line of its own, its seconds are
        interpolated linearly.
        """
        timed = [line for line in lines if _CLOCK in line]
        if not timed:
            return
        steps = [line["step"] for line in timed]
        seconds = [line.get(_SECONDS + STEP, 0.0) for line in timed]
        trained = float(np.interp(first_step, steps, seconds, left=0.0))
        last = timed[-1]
        self._before = {part: last.get(_SECONDS + part, 0.0) for part in PARTS}
        # Steps after the checkpoint were trained but not saved: their seconds count as lost.
        self._before[STEP] = trained
        self._before["repeated"] += seconds[-1] - trained
        self._before["stopped"] += max(self._started - last[_CLOCK], 0.0)

    def values(self) -> dict[str, float]:
        """Return metric key -> value up to now."""
        self.switch_to(self.part)
        seconds = self._total_seconds()
        spent = {_SECONDS + part: value for part, value in seconds.items() if value}
        share = seconds[STEP] / max(sum(seconds.values()), 1e-9)
        return {"perf/goodput": share, _CLOCK: self.since} | spent

    def summary(self) -> str:
        """Return one line: the share that trained, then the other parts, largest first."""
        share = self.values()["perf/goodput"]
        seconds = self._total_seconds()
        total = max(sum(seconds.values()), 1e-9)
        lost = sorted(((value, part) for part, value in seconds.items()), reverse=True)
        parts = [f"{part} {value / total:.1%}" for value, part in lost if part != STEP]
        shown = ", ".join(part for part in parts if not part.endswith(" 0.0%"))
        return f"goodput {share:.1%} of {duration(total)}" + (f"; {shown}" if shown else "")

    def _total_seconds(self) -> dict[str, float]:
        """Return the seconds of all starts by part."""
        return {part: self._before[part] + value for part, value in self.seconds.items()}
