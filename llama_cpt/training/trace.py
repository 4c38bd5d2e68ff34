"""A trace of a few steps, for XProf and Perfetto."""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import re
import shutil
import sys
import tempfile
from typing import Any

from etils import epath
import jax

from llama_cpt.errors import UserError
from llama_cpt.processes import is_first

FOLDER = "profile"
"""Where a run keeps its traces, below its output folder."""


NO_STEPS = 0, 0


def steps_to_trace(text: str) -> tuple[int, int]:
    """The steps that ``FIRST:LAST`` names, from 1; raises UserError where it names none."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--profile {text}: FIRST:LAST, steps from 1, such as 10:13.")
    return int(found[1]), int(found[2])


class Trace:
    """Of ``steps``, the first to the last, both included, into ``folder``; or of ``NO_STEPS``.

    Every process writes its own; the first also writes one that Perfetto opens.
    """

    def __init__(self, steps: tuple[int, int], folder: str) -> None:
        (self._first, self._last), self._target = steps, folder
        self._folder, self._running = folder, False

    def warn_of_none(self, first_step: int, num_steps: int) -> None:
        """Say it where a run of the steps after ``first_step`` never comes to the first."""
        if self._first and not first_step < self._first <= num_steps:
            print(
                f"--profile {self._first}:{self._last}: no trace: this start does steps "
                f"{first_step + 1} to {num_steps}.",
                file=sys.stderr,
            )

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
            try:
                jax.profiler.stop_trace()
                if self._folder != self._target:
                    self._move()
            except Exception as error:  # Whatever it is: a run is worth more than its trace.
                print(f"warning: {self._target}: no trace: {error}", file=sys.stderr)
                return
            if is_first():
                print(f"trace of steps {self._first} to {self._last}: {self._target}", flush=True)

    def _move(self) -> None:
        for file in Path(self._folder).rglob("*"):
            if file.is_file():
                copy = epath.Path(self._target) / file.relative_to(self._folder).as_posix()
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
        shutil.rmtree(self._folder)
