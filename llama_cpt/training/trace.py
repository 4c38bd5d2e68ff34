"""A trace of a few steps, for XProf and Perfetto."""

from collections.abc import Iterator
import contextlib
import re
from typing import Any

import jax

from llama_cpt.errors import UserError
from llama_cpt.processes import is_first

FOLDER = "profile"
"""Where a run keeps its traces, below its output folder."""


class Trace:
    """Of steps ``FIRST:LAST``, both included, into ``folder``; of none where ``steps`` is empty.

    Every process writes its own; the first also writes one that Perfetto opens.
    """

    def __init__(self, steps: str, folder: str) -> None:
        found = re.fullmatch(r"(\d+):(\d+)", steps or "0:0")
        if not found or int(found[1]) > int(found[2]) or (steps and int(found[1]) < 1):
            raise UserError(f"--profile {steps}: FIRST:LAST, steps from 1, such as 10:13.")
        self._first, self._last, self._folder = int(found[1]), int(found[2]), folder
        self._running = False

    @contextlib.contextmanager
    def step(self, done: int) -> Iterator[None]:
        """Around the call of step ``done``."""
        if done == self._first:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=is_first())
            self._running = True
        with jax.profiler.StepTraceAnnotation("step", step_num=done):
            yield

    def end(self, done: int, result: Any) -> None:
        """Stop after the last step, once ``result`` of step ``done`` is there."""
        if self._running and done >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Stop, where a run ends before the last step."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            if is_first():
                print(f"trace of steps {self._first} to {self._last}: {self._folder}", flush=True)
