"""What a sweep tells while it runs: a line a trial, how far the one under way is, time left."""

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


class SweepProgress:
    """The console of one worker."""

    def __init__(self, sweep: SweepConfig, trials: Sequence[Trial], workers: int = 1) -> None:
        self.sweep, self.trials, self.workers = sweep, trials, workers
        self._seconds = self._flops = 0.0
        self._waited = ""

    @contextlib.contextmanager
    def listening(self, trial: Trial) -> Iterator[None]:
        """What is printed meanwhile goes to ``log.txt`` in the trial's folder, steps also here."""
        folder = epath.Path(trial.config.output)
        folder.mkdir(parents=True, exist_ok=True)
        start, console = time.monotonic(), sys.stderr
        log = _Log(f"{self._place(trial)} {trial.name}", console)
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        finally:
            (folder / "log.txt").write_text(log.getvalue())
        self._seconds += time.monotonic() - start
        self._flops += trial_flops(trial)

    def ended(self, trial: Trial) -> None:
        """A line for a trial that has ended, and the table with it."""
        note = read_status(trial)
        told = "  ".join(
            f"{group} {bits:.4f}" for group, bits in group_losses(self.sweep, trial).items()
        )
        if note.status != "done":
            told = f"{note.status}: {note.reason}"
        took = f"{duration(note.seconds)}, " if note.seconds else ""
        print(f"{self._place(trial)} {trial.name}  {told}  {took}{self._left()} left", flush=True)
        write_results(self.sweep, self.trials)

    def waiting(self, holders: set[str]) -> None:
        """Others are at what is left: say so once."""
        told = ", ".join(sorted(holders))
        if told != self._waited:
            print(f"waiting for {told}", flush=True)
        self._waited = told

    def _place(self, trial: Trial) -> str:
        return f"[{self.trials.index(trial) + 1}/{len(self.trials)}]"

    def _left(self) -> str:
        if not self._flops:
            return "?"
        flops = sum(trial_flops(trial) for trial in self.trials if read_status(trial) is None)
        return duration(flops * self._seconds / self._flops / self.workers)


class _Log(io.StringIO):
    """Keeps all that is written; now and then shows a step's line on the console."""

    def __init__(self, label: str, console: io.TextIOBase) -> None:
        super().__init__()
        self._label, self._console, self._shown = label, console, time.monotonic()

    def write(self, text: str) -> int:
        now = time.monotonic()
        if text.startswith("step ") and now - self._shown > SHOWN_EVERY_SECONDS:
            self._shown = now
            print(f"{self._label}: {text.rstrip()}", file=self._console, flush=True)
        return super().write(text)
