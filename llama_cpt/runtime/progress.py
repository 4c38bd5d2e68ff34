"""Progress lines on stderr with the amount of work done, the rate and the remaining time."""

import sys
import time
from types import TracebackType

from llama_cpt.runtime.untrusted_text import printable

_enabled = True
"""True if this process shows progress. ``distributed_session`` sets it, because this module is also
imported without JAX and cannot look up the process index."""
_line_shown = False
"""True while the last line of the terminal is a progress line."""
_excluded = 0.0
"""Number of seconds that ``exclude_seconds`` has left out of the rates."""


def enable_progress(enabled: bool) -> None:
    """Show or hide the progress lines of this process; the default is to show them."""
    global _enabled
    _enabled = enabled


def exclude_seconds(seconds: float) -> None:
    """Leave ``seconds`` of the time that has just passed out of the rates, such as compilation."""
    global _excluded
    _excluded += seconds


def clear_line() -> None:
    """Erase the progress line on the terminal so that a log line can take its place."""
    global _line_shown
    if _line_shown:
        _line_shown = False
        sys.stderr.write("\r" + " " * 100 + "\r")


class Progress:
    """Context manager that shows progress on stderr.

    A terminal shows one line that is updated in place; a file gets a new line every ten seconds.
    ``total`` is the final amount in ``unit``. If ``total`` is 0, the final amount is unknown and
    the line does not show the remaining time. The rate leaves out the time that
    ``exclude_seconds`` excludes.
    """

    def __init__(self, label: str, total: float, unit: str) -> None:
        self.label, self.total, self.unit = printable(label), total, unit
        self.done = 0.0
        self._terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()
        self._excluded, self._shown_amount = _excluded, -1.0

    def update(self, amount: float) -> None:
        """Add ``amount``, in ``unit``, to the amount done and show the line if it is due."""
        self.done += amount
        now = time.monotonic()
        if _enabled and now - self._shown >= (0.2 if self._terminal else 10.0):
            self._shown = now
            self._show(last=False)

    def _show(self, *, last: bool) -> None:
        """Write the line. On a terminal, the next line overwrites it unless ``last`` is True."""
        global _line_shown
        self._shown_amount = self.done
        excluded = _excluded - self._excluded
        seconds = max(time.monotonic() - self._start - excluded, 1e-9)
        rate = self.done / seconds
        text = f"{self.label}: {_number(self.done)} {self.unit}, {_number(rate)} {self.unit}/s"
        if self.total:
            left = max(self.total - self.done, 0) / max(rate, 1e-9)
            text = (
                f"{self.label}: {_number(self.done)} of {_number(self.total)} {self.unit} "
                f"({self.done / self.total:.0%}), {_number(rate)} {self.unit}/s, "
                f"{duration(left)} left"
            )
        start, end = ("\r", "\n" if last else "") if self._terminal else ("", "\n")
        sys.stderr.write(f"{start}{text:<78}{end}")
        sys.stderr.flush()
        _line_shown = self._terminal and not last

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
        # Do not report work of less than two seconds.
        if time.monotonic() - self._start > 2.0 and (self._terminal or kind is None):
            # A file already has the last line if it was due.
            if self._terminal or self._shown_amount != self.done:
                self._show(last=True)
        elif self._terminal:
            clear_line()


def _number(value: float) -> str:
    """Format a number; for example, 12345.6 becomes ``12,346`` and 1.234 becomes ``1.23``."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Format a duration; for example, 65 seconds become ``1m05s``."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
