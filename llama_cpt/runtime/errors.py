"""Exit statuses and error types: user errors, transient errors, bugs.

The launch scripts decide by these numbers alone whether a job is started again
(docs/guide/many_hosts.md has the table). Signals add 134 (SIGABRT: another process was lost),
137 (SIGKILL) and 143 (SIGTERM before the processes are connected).
"""

from collections.abc import Iterator
import contextlib
import sys
import traceback

from llama_cpt.runtime.retry import describes_transient, is_permanent, is_storage_error

BUG = 1
"""An unforeseen exception, printed with its traceback; restarted as long as there is progress."""
USAGE = 2
"""A wrong option: unknown, or with an invalid value; never restarted."""
NEGATIVE_RESULT = 3
"""The command succeeded with a negative result: the plan does not fit the chips."""
CHECK_FAILED = 65
"""A check found a difference or a value that is not finite (EX_DATAERR); never restarted."""
PREEMPTED = 75
"""Stopped by SIGTERM or by a transient error (EX_TEMPFAIL); always restarted."""
USER_ERROR = 78
"""An error that the user has to fix: a config, a file, a full disk, a missing permission
(EX_CONFIG); never restarted."""
INTERRUPTED = 130
"""Stopped by Ctrl-C (128 + SIGINT); never restarted."""


class UserError(ValueError):
    """An error that the user can fix; the message names the file, field or line, and the remedy."""

    status = USER_ERROR
    """The exit status of a command that ends with this error."""


class UsageError(UserError):
    """A wrong option on the command line."""

    status = USAGE


def exit_status(error: BaseException) -> int:
    """Return the exit status of a command that ``error`` ends."""
    if isinstance(error, UserError):
        return error.status
    if isinstance(error, Exception) and is_storage_error(error):
        return USER_ERROR if is_permanent(error) else PREEMPTED
    return PREEMPTED if describes_transient(str(error)) else BUG


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Context manager for a command: an error ends it with the status of ``exit_status``.

    User errors and errors of the operating system are printed in one line, unforeseen ones with
    their traceback.
    """
    try:
        yield
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(exit_status(error)) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(exit_status(error)) from None
