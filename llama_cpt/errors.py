"""What ends a command: the user's mistakes, what may pass, and what nobody foresaw."""

from collections.abc import Iterator
import contextlib
import sys
import traceback

from llama_cpt.patience import passes, says_it_passes

PREEMPTED = 75
"""Exit status: to be started again (EX_TEMPFAIL)."""


class UserError(ValueError):
    """What a user can mend; the message names the file, field or line, and the remedy."""

    status = 1
    """The exit status of a command that it ends."""


def exit_status(error: BaseException) -> int:
    """Of a command that ``error`` ends: ``PREEMPTED`` where a new start may go well."""
    if isinstance(error, UserError):
        return error.status
    later = isinstance(error, Exception) and passes(error)
    return PREEMPTED if later or says_it_passes(str(error)) else 1


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Around a command: a UserError ends it in one line and its exit status, without a traceback.

    So does what the operating system refuses: a full disk, a missing permission. What may pass ends
    it with ``PREEMPTED``.
    """
    try:
        yield
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(exit_status(error)) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(exit_status(error)) from None
