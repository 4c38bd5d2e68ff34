"""Progress of a sweep: log lines about ended trials and about the steps of the current trial."""

from collections.abc import Generator, Sequence
import contextlib
import io
import logging
import sys
import time
from typing import TextIO

from etils import epath

from llama_cpt.config.sweep import SweepConfig
from llama_cpt.runtime.progress import duration
from llama_cpt.sweeps.cost import trial_flops
from llama_cpt.sweeps.results import heldout_losses, read_status, write_results
from llama_cpt.sweeps.trials import Trial

logger = logging.getLogger(__name__)

SHOWN_EVERY_SECONDS = 30.0
"""Minimum number of seconds between two lines about the steps of a trial on the console."""


class SweepProgress:
    """A reporter that writes the progress of one worker to the log and to ``results.csv``."""

    def __init__(self, sweep: SweepConfig, trials: Sequence[Trial], workers: int = 1) -> None:
        self.sweep, self.trials, self.workers = sweep, trials, workers
        self._seconds = self._flops = 0.0
        self._waiting_for = ""

    @contextlib.contextmanager
    def capture(self, trial: Trial) -> Generator[None]:
        """Context manager that writes all output and the log to the trial's ``log.txt``.

        Log lines about steps are also shown on the console, at most one line every
        ``SHOWN_EVERY_SECONDS`` seconds.
        """
        folder = epath.Path(trial.config.output)
        folder.mkdir(parents=True, exist_ok=True)
        start, output = time.monotonic(), io.StringIO()
        shown = _ShownSteps(f"{self._position(trial)} {trial.name}", sys.stderr)
        package_logger = logging.getLogger("llama_cpt")
        package_logger.addHandler(shown)
        try:
            # The log's handler writes to the current sys.stderr.
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                yield
        finally:
            package_logger.removeHandler(shown)
            (folder / "log.txt").write_text(output.getvalue())
        self._seconds += time.monotonic() - start
        self._flops += trial_flops(trial)

    def report(self, trial: Trial) -> None:
        """Log the result of ``trial``, which has ended, and update ``results.csv``."""
        status = read_status(trial)
        assert status is not None
        summary = "  ".join(
            f"{name} {bits:.4f}" for name, bits in heldout_losses(self.sweep, trial).items()
        )
        if status.status != "done":
            summary = f"{status.status}: {status.reason}"
        took = f"{duration(status.seconds)}, " if status.seconds else ""
        position = self._position(trial)
        logger.info("%s %s  %s  %s%s left", position, trial.name, summary, took, self._left())
        write_results(self.sweep, self.trials)

    def report_waiting(self, owners: set[str]) -> None:
        """Log that the remaining trials are leased to ``owners``.

        The line is written only if ``owners`` has changed since the previous call.
        """
        names = ", ".join(sorted(owners))
        if names != self._waiting_for:
            logger.info("waiting for %s", names)
        self._waiting_for = names

    def _position(self, trial: Trial) -> str:
        return f"[{self.trials.index(trial) + 1}/{len(self.trials)}]"

    def _left(self) -> str:
        """Return the estimated time until the sweep ends, such as ``1h05m``, or ``?``.

        The estimate uses the FLOPs per second of the trials that this worker has run.
        """
        if not self._flops:
            return "?"
        flops = sum(trial_flops(trial) for trial in self.trials if read_status(trial) is None)
        return duration(flops * self._seconds / self._flops / self.workers)


class _ShownSteps(logging.Handler):
    """Log handler that prints lines about steps to ``console``.

    At most one line is printed every SHOWN_EVERY_SECONDS seconds.
    """

    def __init__(self, label: str, console: TextIO) -> None:
        super().__init__()
        self._label, self._console, self._shown = label, console, time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Print ``record`` if it is about a step and no line was printed recently."""
        now, line = time.monotonic(), record.getMessage()
        is_step = record.levelno == logging.INFO and line.startswith("step ")
        if is_step and now - self._shown > SHOWN_EVERY_SECONDS:
            self._shown = now
            print(f"{self._label}: {line}", file=self._console, flush=True)
