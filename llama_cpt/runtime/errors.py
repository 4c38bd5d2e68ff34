"""Exit statuses and error types: user errors, transient errors, bugs.

The launch scripts read only the exit status to decide whether to restart a job;
docs/guide/many_hosts.md lists their decisions. A signal causes one of three additional statuses:
134 (SIGABRT, after another process was lost), 137 (SIGKILL) or 143 (SIGTERM before the processes
are connected).
"""

from collections.abc import Generator
import contextlib
import sys
import traceback

from llama_cpt.runtime.logs import configure_logging
from llama_cpt.runtime.retry import describes_transient, is_permanent, is_storage_error
from llama_cpt.runtime.untrusted_text import one_line, printable

BUG = 1
"""An unexpected exception, printed with its traceback. A launch script restarts the job as long as
new checkpoints appear."""
USAGE = 2
"""The command line has an unknown option or an invalid value. A launch script does not restart the
job."""
NEGATIVE_RESULT = 3
"""The command ran without an error, but its answer is negative: a plan does not fit the chips, or a
law gives no recommendation, or a model's weights agree but its logits cannot be compared."""
CHECK_FAILED = 65
"""A check found a difference or a non-finite value (EX_DATAERR). A launch script does not restart
the job."""
PREEMPTED = 75
"""SIGTERM or a transient error ended the command (EX_TEMPFAIL). A launch script restarts the
job."""
USER_ERROR = 78
"""The user has to fix a config, a file, a full disk or a missing permission (EX_CONFIG). A launch
script does not restart the job."""
INTERRUPTED = 130
"""Ctrl-C ended the command (128 + SIGINT). A launch script does not restart the job."""


class UserError(ValueError):
    """An error that the user can fix. Its message names the file, field or line and the remedy."""

    status = USER_ERROR
    """The exit status of a command that raises this error."""


class UsageError(UserError):
    """An error for an unknown option or an invalid value on the command line."""

    status = USAGE


def exit_status(error: BaseException) -> int:
    """Return the exit status of a command that raises ``error``."""
    if isinstance(error, UserError):
        return error.status
    if isinstance(error, Exception) and is_storage_error(error):
        return USER_ERROR if is_permanent(error) else PREEMPTED
    return PREEMPTED if describes_transient(str(error)) else BUG


def first_line(error: BaseException) -> str:
    """Return the first line with text of the message of ``error``, or ``repr(error)``."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, lines), repr(error))


@contextlib.contextmanager
def one_line_errors() -> Generator[None]:
    """Context manager for a command: configures the log and turns an error into an exit status.

    An exception is replaced by SystemExit with the result of ``exit_status``. A UserError or
    OSError is printed on one line; all other exceptions are printed with their traceback.
    """
    configure_logging()
    try:
        yield
    except (UserError, OSError) as error:
        print(one_line(f"error: {error}"), file=sys.stderr)
        raise SystemExit(exit_status(error)) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        print(printable(traceback.format_exc()), end="", file=sys.stderr)
        raise SystemExit(exit_status(error)) from None
