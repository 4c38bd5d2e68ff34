"""The user's mistakes, told apart from ours."""

from collections.abc import Iterator
import contextlib
import sys


class UserError(ValueError):
    """What a user can mend; the message names the file, field or line, and the remedy."""

    status = 1
    """The exit status of a command that it ends."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Around a command: a UserError ends it in one line and its exit status, without a traceback.

    So does what the operating system refuses: a full disk, a missing permission.
    """
    try:
        yield
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.status if isinstance(error, UserError) else 1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
