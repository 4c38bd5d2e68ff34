"""A thread that names what takes far too long, and shows where every thread is."""

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
"""A step shorter than this is never too long."""
STEP_TIMES = 20.0
"""Nor is one shorter than this many times the mean since the start."""
OTHER_SECONDS = 3600.0
"""Anything but a step, and the first step, may take this long."""
_ANSWER_SECONDS = 30.0


class Watchdog:
    """Watches ``clock``: what it has been at for too long is told once, on stderr.

    With several processes each says what it is at; those that are elsewhere, or silent, are named.
    It ends nothing: what takes long may still end well.
    """

    def __init__(self, clock: Goodput, *, poll_seconds: float = 5.0) -> None:
        self.steps_done = 0
        """Steps finished since the start; the loop keeps it."""
        self._clock, self._poll_seconds = clock, poll_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        told = 0.0
        while not self._over.wait(self._poll_seconds):
            since, part = self._clock.since, self._clock.part
            taken = time.time() - since
            if since != told and taken > (limit := self._limit(part)):
                told = since
                self._tell(part, taken, limit)

    def _limit(self, part: str) -> float:
        if part != STEP or self.steps_done < 2:
            return OTHER_SECONDS
        return max(STEP_SECONDS, STEP_TIMES * self._clock.seconds[STEP] / self.steps_done)

    def _tell(self, part: str, taken: float, limit: float) -> None:
        where = f"{part}, {self.steps_done} steps after the start"
        print(
            f"watchdog: process {process_index()}: {where}: running for {taken:.0f} s (limit "
            f"{limit:.0f} s). Thread stacks:",
            file=sys.stderr,
        )
        faulthandler.dump_traceback(file=sys.stderr)
        if process_count() == 1:
            return
        kv_put("late", where)
        if self._over.wait(_ANSWER_SECONDS):
            return
        at = kv_get("late")
        for process in range(process_count()):
            if at.get(process) != where:
                elsewhere = at.get(process, "has not noticed anything, or does not answer")
                print(f"watchdog: {process_label(process)}: {elsewhere}", file=sys.stderr)
