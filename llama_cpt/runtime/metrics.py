"""Writing and reading of a run's metrics: ``metrics.jsonl`` and TensorBoard events."""

from collections.abc import Mapping, Sequence
import contextlib
import json
import logging
import math
import os
from pathlib import Path
import re
import shutil
import sys
import tempfile
import time
from typing import Any, TextIO

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import require_regular_file
from llama_cpt.runtime.logs import warn_once
from llama_cpt.runtime.metric_table import FORMER_KEYS
from llama_cpt.runtime.retry import is_storage_error, is_transient, with_retries
from llama_cpt.runtime.wandb_run import WandbRun

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
"""Name of the metrics file in a run's folder."""
TENSORBOARD = "tensorboard"
"""Name of the folder with TensorBoard events in a run's folder."""

# protobuf makes these classes when the module is imported, so type checkers do not know them.
Event: Any = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog: Any = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
_FORMER_PATTERNS = tuple(
    (re.compile(re.escape(former).replace("NAME", "(.+)")), present.replace("NAME", r"\1"))
    for former, present in FORMER_KEYS.items()
)
# Remote objects cannot be appended to. Local files are appended to and copied at this interval.
_UPLOAD_SECONDS = 60.0


class MetricsWriter:
    """A writer of ``metrics.jsonl`` and TensorBoard events to ``folder`` (local or ``gs://``).

    A run that resumes after step ``resume_step`` keeps the earlier lines up to that step. If
    ``resume_step`` is None, the run is new and keeps no earlier lines. Lines are removed only when
    the first new line is written, so that a process that exits earlier loses nothing. With
    ``enabled`` False, the writer does nothing; ``enabled`` is True only in the primary process.
    Values are also sent to ``wandb_run`` if it is given.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        resume_step: int | None,
        *,
        enabled: bool = True,
        wandb_run: WandbRun | None = None,
    ) -> None:
        self._enabled, self._wandb_run = enabled, wandb_run
        if not enabled:
            return
        self._target = epath.Path(folder)
        self._remote = "://" in str(folder)
        self._local = Path(tempfile.mkdtemp(prefix="metrics-") if self._remote else self._target)
        self._local.mkdir(parents=True, exist_ok=True)
        self._last_step = -1 if resume_step is None else resume_step
        self._lines: TextIO | None = None
        self._closed = False
        events = self._target / TENSORBOARD
        earlier = len(list(events.iterdir())) if events.exists() else 0
        (self._local / TENSORBOARD).mkdir(exist_ok=True)
        # The file name contains the time in seconds. The suffix keeps a restart within the same
        # second from overwriting a file. The library's threaded writer would hang on a full disk.
        self._events = EventsWriter(str(self._local / TENSORBOARD / "events"), f".{earlier}")
        started = SessionLog(status=SessionLog.START)
        self._event(Event(step=self._last_step + 1, session_log=started))
        self._uploaded = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line with ``step`` and ``values``.

        ``step`` is the number of steps done, and ``values`` maps metric names to values. A value
        that is not finite becomes null in the file and is omitted from TensorBoard. Raises
        UserError if the file cannot be written.
        """
        if not self._enabled:
            return
        # JSON has no NaN: strict readers would reject the whole file.
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        if self._lines is None:
            cut_back(self._target / FILE, self._local / FILE, self._last_step)
            self._lines = (self._local / FILE).open("a", encoding="utf-8")
        try:
            self._lines.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
            with_retries(self._lines.flush)
            for key, value in finite.items():
                if value is not None:
                    self._event(Event(step=step, summary=scalar(key, value)))
            with_retries(self._events.flush)
        except OSError as error:
            if is_transient(error):
                raise
            raise UserError(
                f"{self._local}: metrics cannot be written: {error.strerror}. Free space and start "
                "the run again; it resumes from its last checkpoint."
            ) from error
        if self._wandb_run is not None:
            known = {key: value for key, value in finite.items() if value is not None}
            self._wandb_run.write(step, known)
        if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self.upload()

    def close(self) -> None:
        """Flush and close the files, and copy them to a remote folder; later calls do nothing."""
        if not self._enabled or self._closed:
            return
        self._closed = True
        # The method write has raised earlier errors; closing can only repeat them.
        with contextlib.suppress(OSError):
            if self._lines is not None:
                self._lines.close()
        with contextlib.suppress(OSError):
            self._events.close()
        if self._remote and self.upload():
            shutil.rmtree(self._local)

    def upload(self) -> bool:
        """Copy the files to the remote folder, and return whether this succeeded.

        If the copy fails, log a warning. If the folder is local, do nothing and return True.
        """
        if not self._enabled or not self._remote:
            return True
        self._uploaded = time.monotonic()
        try:
            for file in self._local.rglob("*"):
                if file.is_file():
                    copy = self._target / file.relative_to(self._local).as_posix()
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(file.read_bytes())
        except Exception as error:
            if not is_storage_error(error):
                raise
            logger.warning(
                f"{self._target}: metrics cannot be copied ({error}); they stay in {self._local}."
            )
            return False
        return True

    def _event(self, event: Any) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)


def read_lines(source: epath.Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Return the metrics of each line of a ``metrics.jsonl`` up to ``last_step``, or of all lines.

    Returns [] if the file does not exist. Every value is a finite number or None. Lines that are
    not objects of numbers with a ``step`` are skipped, and a warning with their numbers is logged
    once per process. The incomplete last line of a killed process is skipped without a warning.
    Names of metrics from earlier versions are replaced by the present names. Raises UserError if
    ``source`` is not a regular file.
    """
    if not source.exists():
        return []
    require_regular_file(str(source))
    lines, bad = [], []
    raw = source.read_bytes().split(b"\n")
    for number, text in enumerate(raw, 1):
        if (line := _parse_line(text)) is not None:
            lines.append(line)
        elif text.strip() and number < len(raw):
            bad.append(number)
    if bad:
        _warn_of_bad_lines(str(source), bad)
    return [line for line in lines if last_step is None or line["step"] <= last_step]


def has_evaluation(line: Mapping[str, Any]) -> bool:
    """Return whether a line of ``metrics.jsonl`` contains held-out results."""
    return any(key.startswith("eval/") for key in line)


def _parse_line(text: bytes) -> dict[str, Any] | None:
    """Return the metrics of one line, or None if the line is not an object of numbers."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or type(values.get("step")) is not int or values["step"] < 0:
        return None
    if not all(value is None or type(value) in (int, float) for value in values.values()):
        return None
    # A float cannot represent an integer above 1e308, and NaN and Infinity are not JSON.
    largest = sys.float_info.max
    return {
        _present_key(key): value if value is not None and -largest <= value <= largest else None
        for key, value in values.items()
    }


def _warn_of_bad_lines(file: str, numbers: Sequence[int]) -> None:
    shown = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
    message = (
        f"{file}: {len(numbers)} damaged lines were skipped (line {shown}); restore the file from "
        "a copy if you need their metrics."
    )
    warn_once(logger, message)


def _present_key(key: str) -> str:
    """Return the present name of a metric that an earlier version wrote as ``key``."""
    for former, present in _FORMER_PATTERNS:
        if match := former.fullmatch(key):
            return match.expand(present)
    return key


def cut_back(
    source: epath.Path, target: Path | epath.Path, last_step: int, *, evaluated: bool = True
) -> None:
    """Copy the lines of ``source`` up to step ``last_step`` to ``target``.

    If ``evaluated`` is False, the held-out results after step ``last_step`` are left out.
    """
    kept = read_lines(source, last_step)
    if not evaluated:
        kept = [line for line in kept if line["step"] < last_step or not has_evaluation(line)]
    write_atomic(target, "".join(f"{json.dumps(line)}\n" for line in kept))
