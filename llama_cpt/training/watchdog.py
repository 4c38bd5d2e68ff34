"""A watchdog thread that reports a step or phase that takes too long, with all thread stacks."""

import faulthandler
import sys
import threading
import time

from llama_cpt.runtime.distributed import (
    kv_get,
    kv_put,
    process_count,
    process_index,
    process_label,
)
from llama_cpt.training.goodput import STEP, Goodput

STEP_SECONDS = 120.0
"""Minimum limit for a step, in seconds."""
STEP_TIMES = 20.0
"""Limit for a step as a multiple of the mean step time since the start."""
OTHER_SECONDS = 3600.0
"""Limit for the first steps, which compile, and for anything that is not a step, in seconds."""
_ANSWER_SECONDS = 30.0
"""Time that the other processes have to report the same phase."""


class Watchdog:
    """Context manager that watches ``clock`` and reports each overlong phase once, on stderr.

    With several processes each publishes its phase, and those in another phase or without an answer
    are named. The watchdog only reports: a slow phase may still succeed.
    """

    def __init__(self, clock: Goodput, *, poll_seconds: float = 5.0) -> None:
        self.steps_done = 0
        """Steps finished since the start, updated by the training loop."""
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
        # The clock is read without a lock, so that the loop never waits. A pair of values read in
        # the middle of a switch can cause one wrong report at worst.
        reported = 0.0
        while not self._closed.wait(self._poll_seconds):
            since, part = self._clock.since, self._clock.part
            taken = time.time() - since
            if since != reported and taken > (limit := self._limit(part)):
                reported = since
                self._report(part, taken, limit)

    def _limit(self, part: str) -> float:
        if part != STEP or self.steps_done < 2:
            return OTHER_SECONDS
        return max(STEP_SECONDS, STEP_TIMES * self._clock.seconds[STEP] / self.steps_done)

    def _report(self, part: str, taken: float, limit: float) -> None:
        phase = f"{part}, {self.steps_done} steps after the start"
        print(
            f"watchdog: process {process_index()}: {phase}: running for {taken:.0f} s (limit "
            f"{limit:.0f} s). Thread stacks:",
            file=sys.stderr,
        )
        faulthandler.dump_traceback(file=sys.stderr)
        if process_count() == 1:
            return
        kv_put("late", phase)
        if self._closed.wait(_ANSWER_SECONDS):
            return
        phases = kv_get("late")
        for process in range(process_count()):
            if phases.get(process) != phase:
                other = phases.get(process, "reports nothing overdue, or does not answer")
                print(f"watchdog: {process_label(process)}: {other}", file=sys.stderr)
