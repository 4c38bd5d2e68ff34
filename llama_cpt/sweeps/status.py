"""Console output of a sweep: one line per trial, steps of the current one, and time left."""

from collections.abc import Iterator, Sequence
import contextlib
import io
import sys
import time

from etils import epath

from llama_cpt.config.sweep import SweepConfig
from llama_cpt.runtime.progress import duration
from llama_cpt.sweeps.cost import trial_flops
from llama_cpt.sweeps.results import group_losses, read_status, write_results
from llama_cpt.sweeps.trials import Trial

SHOWN_EVERY_SECONDS = 30.0
"""Minimum seconds between two steps of a trial on the console."""


class SweepProgress:
    """The console output of one worker."""

    def __init__(self, sweep: SweepConfig, trials: Sequence[Trial], workers: int = 1) -> None:
        self.sweep, self.trials, self.workers = sweep, trials, workers
        self._seconds = self._flops = 0.0
        self._waiting_for = ""

    @contextlib.contextmanager
    def capture(self, trial: Trial) -> Iterator[None]:
        """Context manager that sends output to the trial's ``log.txt``; some steps are shown."""
        folder = epath.Path(trial.config.output)
        folder.mkdir(parents=True, exist_ok=True)
        start, console = time.monotonic(), sys.stderr
        log = _Log(f"{self._position(trial)} {trial.name}", console)
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        finally:
            (folder / "log.txt").write_text(log.getvalue())
        self._seconds += time.monotonic() - start
        self._flops += trial_flops(trial)

    def report(self, trial: Trial) -> None:
        """Print a line for a trial that has ended, and update ``results.csv``."""
        status = read_status(trial)
        summary = "  ".join(
            f"{group} {bits:.4f}" for group, bits in group_losses(self.sweep, trial).items()
        )
        if status.status != "done":
            summary = f"{status.status}: {status.reason}"
        took = f"{duration(status.seconds)}, " if status.seconds else ""
        position = self._position(trial)
        print(f"{position} {trial.name}  {summary}  {took}{self._left()} left", flush=True)
        write_results(self.sweep, self.trials)

    def report_waiting(self, owners: set[str]) -> None:
        """Print once that the remaining trials are leased to ``owners``."""
        names = ", ".join(sorted(owners))
        if names != self._waiting_for:
            print(f"waiting for {names}", flush=True)
        self._waiting_for = names

    def _position(self, trial: Trial) -> str:
        return f"[{self.trials.index(trial) + 1}/{len(self.trials)}]"

    def _left(self) -> str:
        """Return the time left, from the FLOPs per second of the trials that this worker ran."""
        if not self._flops:
            return "?"
        flops = sum(trial_flops(trial) for trial in self.trials if read_status(trial) is None)
        return duration(flops * self._seconds / self._flops / self.workers)


class _Log(io.StringIO):
    """Buffer of all output, which also prints a step's line on the console now and then."""

    def __init__(self, label: str, console: io.TextIOBase) -> None:
        super().__init__()
        self._label, self._console, self._shown = label, console, time.monotonic()

    def write(self, text: str) -> int:
        now = time.monotonic()
        if text.startswith("step ") and now - self._shown > SHOWN_EVERY_SECONDS:
            self._shown = now
            print(f"{self._label}: {text.rstrip()}", file=self._console, flush=True)
        return super().write(text)
