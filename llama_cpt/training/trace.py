"""A trace of a few steps, for XProf and Perfetto."""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import re
import shutil
import sys
import tempfile

from etils import epath
import jax

from llama_cpt.runtime.distributed import is_primary, process_count, process_index
from llama_cpt.runtime.errors import UsageError

FOLDER = "profile"
"""Where a run keeps its traces, below its output folder."""


NO_STEPS = 0, 0


def steps_to_trace(text: str) -> tuple[int, int]:
    """The steps that ``FIRST:LAST`` names, from 1; raises UserError where it names none."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--profile {text}: FIRST:LAST, steps from 1, such as 10:13.")
    return int(found[1]), int(found[2])


class Trace:
    """Of ``steps``, the first to the last, both included, into ``folder``; or of ``NO_STEPS``.

    Every process writes its own; the first also writes one that Perfetto opens. A trace that fails
    is told of and ends no run.
    """

    def __init__(self, steps: tuple[int, int], folder: str) -> None:
        (self._first, self._last), self._target = steps, folder
        self._folder, self._running = "", False

    def warn_if_unreachable(self, first_step: int, num_steps: int) -> None:
        """Say it where a run of the steps after ``first_step`` never comes to the first."""
        if self._first and not first_step < self._first <= num_steps:
            print(
                f"--profile {self._first}:{self._last}: no trace: this start does steps "
                f"{first_step + 1} to {num_steps}.",
                file=sys.stderr,
            )

    def begins_at(self, step: int) -> bool:
        """Whether ``begin`` is due before ``step``."""
        return step == self._first

    def begin(self) -> None:
        """Trace from now on."""
        with self._warned():
            # The profiler writes to local files alone, named by the host: processes may share one.
            self._folder = tempfile.mkdtemp(prefix="profile-")
            jax.profiler.start_trace(self._folder, create_perfetto_trace=is_primary())
            self._running = True

    def ends_at(self, step: int) -> bool:
        """Whether ``close`` is due after ``step``."""
        return self._running and step >= self._last

    def close(self) -> None:
        """Stop and write; also where a run ends before the last step."""
        if not self._running:
            return
        self._running = False
        with self._warned():
            try:
                jax.profiler.stop_trace()
                self._move()
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)
            if is_primary():
                print(f"trace of steps {self._first} to {self._last}: {self._target}", flush=True)

    def _move(self) -> None:
        """To where XProf looks for a run, with a file of each process."""
        run = epath.Path(self._target, "plugins", "profile", f"steps_{self._first}_{self._last}")
        run.mkdir(parents=True, exist_ok=True)
        own = f"process_{process_index()}." if process_count() > 1 else ""
        for file in Path(self._folder).rglob("*"):
            if file.is_file():
                (run / f"{own}{file.name}").write_bytes(file.read_bytes())

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Whatever it is: a run is worth more than its trace.
            print(f"warning: {self._target}: no trace: {error}", file=sys.stderr)
