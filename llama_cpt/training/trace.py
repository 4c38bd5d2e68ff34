"""Profiler traces of a few steps, for XProf and Perfetto."""

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
"""The folder of traces below a run's output folder."""

NO_STEPS = 0, 0
"""The value for a run without a trace."""


def steps_to_trace(text: str) -> tuple[int, int]:
    """Parse ``FIRST:LAST``, step numbers from 1. Raises UserError if they are not such numbers."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"--profile {text}: must be FIRST:LAST, steps from 1, such as 10:13.")
    return int(found[1]), int(found[2])


class Trace:
    """A trace of the first to the last of ``steps``, inclusive, written to ``folder``.

    ``NO_STEPS`` traces nothing. Every process writes its own trace; the first one also writes a
    file for Perfetto. A failure is reported and does not end the run.
    """

    def __init__(self, steps: tuple[int, int], folder: str) -> None:
        (self._first, self._last), self._target = steps, folder
        self._folder, self._running = "", False

    def warn_if_unreachable(self, first_step: int, num_steps: int) -> None:
        """Print a warning if no step after ``first_step`` up to ``num_steps`` starts the trace."""
        if self._first and not first_step < self._first <= num_steps:
            print(
                f"--profile {self._first}:{self._last}: no trace: this start trains steps "
                f"{first_step + 1} to {num_steps}.",
                file=sys.stderr,
            )

    def begins_at(self, step: int) -> bool:
        """Return whether ``begin`` must be called before ``step``."""
        return step == self._first

    def begin(self) -> None:
        """Start the trace."""
        with self._errors_as_warnings():
            # The profiler writes local files only, named by host, and several processes may share a
            # host: each writes to a folder of its own first.
            self._folder = tempfile.mkdtemp(prefix="profile-")
            jax.profiler.start_trace(self._folder, create_perfetto_trace=is_primary())
            self._running = True

    def ends_at(self, step: int) -> bool:
        """Return whether ``close`` must be called after ``step``."""
        return self._running and step >= self._last

    def close(self) -> None:
        """Stop and write the trace, also if the run ends before the last step to trace."""
        if not self._running:
            return
        self._running = False
        with self._errors_as_warnings():
            try:
                jax.profiler.stop_trace()
                self._move()
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)
            if is_primary():
                print(f"trace of steps {self._first} to {self._last}: {self._target}", flush=True)

    def _move(self) -> None:
        """Copy the files to the folder that XProf reads, prefixed by the process number."""
        run = epath.Path(self._target, "plugins", "profile", f"steps_{self._first}_{self._last}")
        run.mkdir(parents=True, exist_ok=True)
        own = f"process_{process_index()}." if process_count() > 1 else ""
        for file in Path(self._folder).rglob("*"):
            if file.is_file():
                (run / f"{own}{file.name}").write_bytes(file.read_bytes())

    @contextlib.contextmanager
    def _errors_as_warnings(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Any failure of the profiler is a warning: the run is worth more than its trace.
            print(f"warning: {self._target}: no trace: {error}", file=sys.stderr)
