"""Configuration of the log: lines on stderr with time, process index, level and message."""

import logging
import sys

from llama_cpt.runtime.progress import clear_line
from llama_cpt.runtime.untrusted_text import printable

_FORMAT = "%(asctime)s p%(process_index)d %(levelname)s %(message)s"
_TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
_INFO_LOGGERS = ("llama_cpt", "__main__")
"""Loggers with level INFO: this package, and the module of a command, which is ``__main__``."""

_logged_once: set[str] = set()
"""Messages that ``warn_once`` has logged in this process."""

_process_index = 0
"""The process index in log lines. ``distributed_session`` sets it, because the log is configured
before the processes connect and this module must not import JAX."""


def set_process_index(index: int) -> None:
    """Set the process index in the log lines of this process; the default is 0."""
    global _process_index
    _process_index = index


def configure_logging() -> None:
    """Write the log to stderr: INFO and above for this package, WARNING and above for libraries.

    Calling this function again has no further effect.
    """
    for handler in logging.root.handlers[:]:
        # Orbax logs while it is imported, and absl then adds a plain handler, which would write
        # each line a second time. Handlers of other classes, such as those of pytest, are kept.
        if type(handler) in (logging.StreamHandler, _StderrHandler):
            logging.root.removeHandler(handler)
    handler = _StderrHandler()
    handler.addFilter(_add_process_index)
    handler.setFormatter(_Formatter(_FORMAT, _TIME_FORMAT))
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.WARNING)
    for name in _INFO_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def warn_once(logger: logging.Logger, message: str) -> None:
    """Log ``message`` as a warning, unless this process has logged it before."""
    if message not in _logged_once:
        _logged_once.add(message)
        logger.warning("%s", message)


class _Formatter(logging.Formatter):
    """A formatter that removes characters that control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of ``record``, which can contain text of documents and models."""
        return printable(super().format(record))


class _StderrHandler(logging.Handler):
    """A handler that writes to the current ``sys.stderr``, which a caller may have redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        """Erase the progress line of a terminal and write ``record`` in its place."""
        try:
            line = self.format(record)
            clear_line()
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def _add_process_index(record: logging.LogRecord) -> bool:
    record.process_index = _process_index
    return True
