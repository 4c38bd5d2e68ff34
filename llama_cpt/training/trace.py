"""A trace of a few steps, for XProf and Perfetto."""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import re
import shutil
import tempfile
from typing import Any

from etils import epath
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
        self._first, self._last, self._target = int(found[1]), int(found[2]), folder
        self._folder, self._running = folder, False

    @contextlib.contextmanager
    def step(self, done: int) -> Iterator[None]:
        """Around the call of step ``done``."""
        if done == self._first:
            if "://" in self._target:
                # The profiler writes to local files alone.
                self._folder = tempfile.mkdtemp(prefix="profile-")
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
            if self._folder != self._target:
                self._move()
            if is_first():
                print(f"trace of steps {self._first} to {self._last}: {self._target}", flush=True)

    def _move(self) -> None:
        for file in Path(self._folder).rglob("*"):
            if file.is_file():
                copy = epath.Path(self._target) / file.relative_to(self._folder).as_posix()
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
        shutil.rmtree(self._folder)
