"""The metrics of a run: writing and reading metrics.jsonl, and TensorBoard events."""

from collections.abc import Mapping
import contextlib
import json
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
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.files import write_atomic
from llama_cpt.runtime.retry import is_storage_error, is_transient, with_retries

FILE = "metrics.jsonl"
"""Name of the metrics file in a run's folder."""
TENSORBOARD = "tensorboard"
"""Name of the folder of TensorBoard events in a run's folder."""

_FORMER_KEYS = {
    "mixture/almr_asked": "mixture/almr_target",
    "mixture/almr_realised": "mixture/almr_realized",
}
# Remote objects cannot be appended to: the files grow on a local disk and are copied this often.
_UPLOAD_SECONDS = 60.0


class MetricsWriter:
    """A writer of ``metrics.jsonl`` and TensorBoard events under ``folder`` (local or ``gs://``).

    A run that resumes after step ``resume_step`` keeps the lines up to that step. Later lines are
    dropped when the first line is written, so that a start that ends before loses nothing. None is
    a new run, which keeps no lines. With ``enabled`` False (every process but the primary one)
    nothing is written.
    """

    def __init__(
        self, folder: str | os.PathLike, resume_step: int | None, *, enabled: bool = True
    ) -> None:
        self._enabled = enabled
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
        # The time in the name counts seconds: without the suffix a quick restart would overwrite a
        # file. EventsWriter, and not the library's threaded writer, which hangs on a full disk.
        self._events = EventsWriter(str(self._local / TENSORBOARD / "events"), f".{earlier}")
        started = SessionLog(status=SessionLog.START)
        self._event(Event(step=self._last_step + 1, session_log=started))
        self._uploaded = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append ``values`` (by keys such as ``train/loss``) after ``step`` steps as one line.

        A value that is not finite is null in the file, and missing in TensorBoard. Raises UserError
        if the file cannot be written.
        """
        if not self._enabled:
            return
        # NaN is not JSON, and strict readers would reject the whole file.
        finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
        if self._lines is None:
            _cut_back(self._target / FILE, self._local / FILE, self._last_step)
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
        if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self.upload()

    def close(self) -> None:
        """Flush and close the files; a second call does nothing."""
        if not self._enabled or self._closed:
            return
        self._closed = True
        # Errors were reported by write; closing the file flushes once more.
        with contextlib.suppress(OSError):
            if self._lines is not None:
                self._lines.close()
        with contextlib.suppress(OSError):
            self._events.close()
        if self._remote and self.upload():
            shutil.rmtree(self._local)

    def upload(self) -> bool:
        """Copy the files to a remote ``folder``; return False, with a warning, if that fails."""
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
            message = f"metrics cannot be copied ({error}); they are kept in {self._local}."
            print(f"warning: {self._target}: {message}", file=sys.stderr)
            return False
        return True

    def _event(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)


def read_lines(source: epath.Path) -> list[dict[str, Any]]:
    """Return the lines of a ``metrics.jsonl``; none if the file does not exist.

    Lines that are not valid JSON, such as the last one of a killed run, are skipped.
    """
    lines = []
    for line in source.read_bytes().splitlines() if source.exists() else ():
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                lines.append({_present_key(key): value for key, value in values.items()})
    return lines


def _present_key(key: str) -> str:
    """Return the name of the metric that earlier versions wrote as ``key``."""
    return re.sub(r"^(mixture/.+)/passes$", r"\1/epochs", _FORMER_KEYS.get(key, key))


def _cut_back(source: epath.Path, target: Path, last_step: int) -> None:
    """Write the lines of ``source`` with a step up to ``last_step`` to ``target``."""
    kept = [json.dumps(line) for line in read_lines(source) if line["step"] <= last_step]
    write_atomic(target, "".join(f"{line}\n" for line in kept))
