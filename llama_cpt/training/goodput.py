"""Where a run's wall time goes: what trained, and what was lost to what, over all its starts."""

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
"""``data``: steps waited for rows; ``repeated``: steps done once more, since they were not saved;
``stopped``: between two starts, from the last line of metrics on."""

_SECONDS, _CLOCK = "perf/seconds/", "perf/unix_seconds"


class Goodput:
    """A clock of which every second belongs to one part; it starts in ``startup``."""

    def __init__(self, started: float | None = None) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        """Of this start."""
        self._before = dict.fromkeys(PARTS, 0.0)
        self.part, self.since = "startup", time.time() if started is None else started
        self._started = self.since

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Seconds inside belong to ``part``."""
        outer = self.part
        self.switch_to(part)
        try:
            yield
        finally:
            self.switch_to(outer)

    def switch_to(self, part: str) -> None:
        """Seconds from now on belong to ``part``."""
        now = time.time()
        self.seconds[self.part] += now - self.since
        self.part, self.since = part, now

    def continue_from(self, lines: Sequence[Mapping[str, Any]], first_step: int) -> None:
        """Add what ``lines`` of metrics tell of a run that goes on after ``first_step``.

        Where no line is of ``first_step`` itself, the steps around it count as equally long.
        """
        told = [line for line in lines if _CLOCK in line]
        if not told:
            return
        steps = [line["step"] for line in told]
        seconds = [line.get(_SECONDS + STEP, 0.0) for line in told]
        trained = float(np.interp(first_step, steps, seconds, left=0.0))
        last = told[-1]
        self._before = {part: last.get(_SECONDS + part, 0.0) for part in PARTS}
        self._before[STEP] = trained
        self._before["repeated"] += seconds[-1] - trained
        self._before["stopped"] += max(self._started - last[_CLOCK], 0.0)

    def values(self) -> dict[str, float]:
        """Metric key -> value, up to now."""
        self.switch_to(self.part)
        seconds = self._over_all()
        spent = {_SECONDS + part: value for part, value in seconds.items() if value}
        share = seconds[STEP] / max(sum(seconds.values()), 1e-9)
        return {"perf/goodput": share, _CLOCK: self.since} | spent

    def summary(self) -> str:
        """In a sentence: the share that trained, and the rest, largest first."""
        share = self.values()["perf/goodput"]
        seconds = self._over_all()
        total = max(sum(seconds.values()), 1e-9)
        lost = sorted(((value, part) for part, value in seconds.items()), reverse=True)
        parts = [f"{part} {value / total:.1%}" for value, part in lost if part != STEP]
        shown = ", ".join(part for part in parts if not part.endswith(" 0.0%"))
        return f"goodput {share:.1%} of {duration(total)}" + (f"; {shown}" if shown else "")

    def _over_all(self) -> dict[str, float]:
        """Seconds of all starts, by part."""
        return {part: self._before[part] + value for part, value in self.seconds.items()}
