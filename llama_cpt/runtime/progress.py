"""A progress line on stderr: amount done, rate and time left."""

import sys
import time
from types import TracebackType

_enabled = True
"""True if this process shows progress. It is set from outside, because this module is also imported
without JAX and cannot look up the process index."""


def enable_progress(enabled: bool) -> None:
    """Show or hide the progress lines of this process; a command shows its primary process's."""
    global _enabled
    _enabled = enabled


class Progress:
    """A progress line on stderr: updating on a terminal, otherwise a plain line every ten seconds.

    ``total`` is in ``unit``; 0 means that it is unknown, and no time left is shown.
    """

    def __init__(self, label: str, total: float, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self._terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def update(self, amount: float) -> None:
        """Add ``amount`` to what is done."""
        self.done += amount
        now = time.monotonic()
        if _enabled and now - self._shown >= (0.2 if self._terminal else 10.0):
            self._shown = now
            self._show("\r" if self._terminal else "", "" if self._terminal else "\n")

    def _show(self, start: str, end: str) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = self.done / seconds
        text = f"{self.label}: {_number(self.done)} {self.unit}, {_number(rate)} {self.unit}/s"
        if self.total:
            left = max(self.total - self.done, 0) / max(rate, 1e-9)
            text = (
                f"{self.label}: {_number(self.done)} of {_number(self.total)} {self.unit} "
                f"({self.done / self.total:.0%}), {_number(rate)} {self.unit}/s, "
                f"{duration(left)} left"
            )
        sys.stderr.write(f"{start}{text:<78}{end}")
        sys.stderr.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not _enabled:
            return
        # Work of less than two seconds is not reported.
        if time.monotonic() - self._start > 2.0 and (self._terminal or kind is None):
            self._show("\r" if self._terminal else "", "\n")
        elif self._terminal:
            sys.stderr.write("\r" + " " * 100 + "\r")


def _number(value: float) -> str:
    """Format a number: ``12345.6`` as ``12,346``, ``1.234`` as ``1.23``."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Format a duration: ``65`` as ``1m05s``."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
