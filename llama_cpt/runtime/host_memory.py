"""A function that returns freed memory to the operating system after compilations."""

import ctypes
from functools import cache
import sys

import jax

from llama_cpt.runtime.compile_time import COMPILED

# Programs that compile faster than this leave little memory behind.
_LONG_SECONDS = 1.0


@cache
def release_after_compilations() -> None:
    """Return memory to the operating system after each long compilation of this process.

    The compiler frees memory in small pieces, which glibc keeps: about 200 MB for a model of 135
    million parameters. Without this function, the first step of a program allocates its memory in
    addition to these pieces.
    """
    jax.monitoring.register_event_duration_secs_listener(_release)


def _release(event: str, duration_secs: float, **_: str | int) -> None:
    if event == COMPILED and duration_secs >= _LONG_SECONDS and sys.platform == "linux":
        # Only glibc has this function.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
