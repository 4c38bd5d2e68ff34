"""A watchdog that logs the stacks of all threads if a step or phase exceeds its time limit."""

from collections.abc import Iterator
import faulthandler
import logging
import sys
import threading
import time
import traceback

from llama_cpt.runtime.distributed import (
    kv_get,
    kv_put,
    process_count,
    process_index,
    process_label,
)
from llama_cpt.training.goodput import STEP, Goodput

logger = logging.getLogger(__name__)

STEP_SECONDS = 120.0
"""Minimum time limit for a step, in seconds."""
STEP_TIMES = 20.0
"""Time limit for a step, as a multiple of the mean step time in this attempt."""
OTHER_SECONDS = 3600.0
"""Time limit in seconds for phases other than steps, and for the first two steps of an attempt."""
_ANSWER_SECONDS = 30.0
"""Seconds to wait for other processes to report that they also exceed a time limit."""


class Watchdog:
    """Context manager that logs a warning when the current phase of ``clock`` takes too long.

    A phase is a period that ``clock`` attributes to one part of ``goodput.PARTS``. The warning is
    logged once per phase. If the run has several processes, a process that exceeds a limit also
    publishes its phase to the other processes. After 30 s, this process logs which processes are in
    a different phase, are within their limit, or do not answer. The watchdog never ends a process,
    because a slow phase can still succeed.
    """

    def __init__(self, clock: Goodput, *, poll_seconds: float = 5.0) -> None:
        self.steps_done = 0
        """Number of steps finished in this attempt, set by the training loop."""
        self._clock, self._poll_seconds = clock, poll_seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        # The clock is read without a lock, so that the training loop never waits. If the clock
        # switches between the two reads, the worst effect is one wrong report.
        reported = 0.0
        while not self._closed.wait(self._poll_seconds):
            since, part = self._clock.since, self._clock.part
            taken = time.monotonic() - since
            if since != reported and taken > (limit := self._limit(part)):
                reported = since
                self._report(part, taken, limit)

    def _limit(self, part: str) -> float:
        if part != STEP or self.steps_done < 2:
            return OTHER_SECONDS
        return max(STEP_SECONDS, STEP_TIMES * self._clock.seconds[STEP] / self.steps_done)

    def _report(self, part: str, taken: float, limit: float) -> None:
        phase = f"{part}, {self.steps_done} steps after the launch"
        logger.warning(
            "watchdog: process %d: %s: running for %.0f s (limit %.0f s). Thread stacks:",
            process_index(),
            phase,
            taken,
            limit,
        )
        _write_stacks()
        if process_count() == 1:
            return
        kv_put("late", phase)
        if self._closed.wait(_ANSWER_SECONDS):
            return
        phases = kv_get("late")
        for process in range(process_count()):
            if phases.get(process) != phase:
                other = phases.get(process, "not late, or does not answer")
                logger.warning("watchdog: %s: %s", process_label(process), other)


def _write_stacks() -> None:
    """Write the stacks of all threads to ``sys.stderr``.

    If ``sys.stderr`` is a buffer without a file descriptor, to which ``faulthandler`` cannot write,
    the stacks are formatted in Python. They are also written to the original stderr, because a
    sweep saves the buffer of a trial only when the trial ends.
    """
    try:
        sys.stderr.fileno()
    except OSError:
        stacks = "".join(_format_stacks())
        sys.stderr.write(stacks)
        if sys.__stderr__ is not None:
            sys.__stderr__.write(f"watchdog: process {process_index()}: thread stacks:\n{stacks}")
            sys.__stderr__.flush()
    else:
        faulthandler.dump_traceback(file=sys.stderr)


def _format_stacks() -> Iterator[str]:
    """Yield the stack of each thread as text, with the name of the thread in the first line."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for thread, frame in sys._current_frames().items():  # pyright: ignore[reportPrivateUsage]
        yield f"Thread {names.get(thread, thread)}:\n"
        yield from traceback.format_stack(frame)
