"""Remote places (``gs://``) that answer in bounded time, or are an error.

Storage clients try again for minutes where there is no network or no right; a user should know at
once.
"""

from collections.abc import Callable
import threading
from typing import Any, TypeVar

import fsspec

from llama_cpt.errors import UserError

ANSWER_SECONDS = 20.0

Found = TypeVar("Found")


def require_reachable(path: str) -> None:
    """Raise UserError where the storage of a remote ``path`` does not answer, or denies it.

    That nothing lies there is no error, and local paths are not looked at.
    """
    if "://" not in path:
        return

    def ask() -> None:
        system, name = fsspec.core.url_to_fs(path)
        try:
            system.info(name)
        except FileNotFoundError:
            pass

    try:
        answer(path, ask)
    except UserError:
        raise
    except Exception as error:  # each storage has its own
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(
            f"{path}: cannot be read ({reason}); name another path, or give this machine's "
            "account the right to it (`gcloud auth application-default login`)."
        ) from None


def answer(path: str, ask: Callable[[], Found]) -> Found:
    """What ``ask`` returns or raises; UserError where it takes longer than an answer may."""
    outcome: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcome.append((True, ask()))
        except BaseException as error:
            outcome.append((False, error))

    # A daemon: a client that still tries must not keep the process from ending.
    asking = threading.Thread(target=run, daemon=True, name=f"asks {path}")
    asking.start()
    asking.join(ANSWER_SECONDS)
    if not outcome:
        raise UserError(
            f"{path}: no answer in {ANSWER_SECONDS:.0f} s; is there a network, and may this "
            "machine's account read the bucket?"
        )
    good, value = outcome[0]
    if good:
        return value
    raise value
