"""Profiler traces of a range of steps, in the formats of XProf and Perfetto."""

from collections.abc import Generator
import contextlib
import logging
from pathlib import Path
import re
import shutil
import tempfile

from etils import epath
import jax

from llama_cpt.runtime.distributed import is_primary, process_count, process_index
from llama_cpt.runtime.errors import UsageError

logger = logging.getLogger(__name__)

FOLDER = "profile"
"""Name of the folder of traces in a run's output folder."""

NO_STEPS = 0, 0
"""Value of the argument ``steps`` of ``Trace`` for a run without a trace."""


def steps_to_trace(text: str) -> tuple[int, int]:
    """Parse ``FIRST:LAST`` and return both step numbers.

    Raises UsageError unless ``text`` has this format and 1 <= FIRST <= LAST.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(
            f"--profile {text}: must be FIRST:LAST, two step numbers counted from 1, such as 10:13."
        )
    return int(found[1]), int(found[2])


class Trace:
    """A profiler trace of a range of steps, written to ``folder``.

    ``steps`` contains the first and the last step of the range, or is ``NO_STEPS``. Every process
    writes its own trace for XProf. The primary process also writes a file for Perfetto. An error of
    the profiler is logged as a warning and does not end the run.
    """

    def __init__(self, steps: tuple[int, int], folder: str) -> None:
        (self._first, self._last), self._target = steps, folder
        self._folder, self._running = "", False

    def warn_if_unreachable(self, first_step: int, num_steps: int) -> None:
        """Log a warning if this attempt does not include the first step of the trace.

        ``first_step`` is the number of steps done before this attempt, and ``num_steps`` is the
        number of steps in the whole run.
        """
        if self._first and not first_step < self._first <= num_steps:
            logger.warning(
                "--profile %d:%d: no trace: this attempt runs steps %d to %d.",
                self._first,
                self._last,
                first_step + 1,
                num_steps,
            )

    def begins_at(self, step: int) -> bool:
        """Return whether ``begin`` must be called before ``step``."""
        return step == self._first

    def begin(self) -> None:
        """Start the trace; an error of the profiler is logged as a warning."""
        with self._errors_as_warnings():
            # The profiler writes only local files and names them after the host. Several processes
            # can run on one host, so each process first writes to a separate temporary folder.
            self._folder = tempfile.mkdtemp(prefix="profile-")
            jax.profiler.start_trace(self._folder, create_perfetto_trace=is_primary())
            self._running = True

    def ends_at(self, step: int) -> bool:
        """Return whether ``close`` must be called after ``step``."""
        return self._running and step >= self._last

    def close(self) -> None:
        """Stop the trace and write its files, if the trace is running.

        The training loop also calls this method if the run ends before the last step to trace.
        """
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
                logger.info("trace of steps %d to %d: %s", self._first, self._last, self._target)

    def _move(self) -> None:
        """Copy the files to the folder that XProf reads.

        If the run has several processes, the process index is prepended to the file names.
        """
        run = epath.Path(self._target, "plugins", "profile", f"steps_{self._first}_{self._last}")
        run.mkdir(parents=True, exist_ok=True)
        own = f"process_{process_index()}." if process_count() > 1 else ""
        for file in Path(self._folder).rglob("*"):
            if file.is_file():
                (run / f"{own}{file.name}").write_bytes(file.read_bytes())

    @contextlib.contextmanager
    def _errors_as_warnings(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            # A failure of the profiler must not end the run.
            logger.warning("%s: no trace: %s", self._target, error)
