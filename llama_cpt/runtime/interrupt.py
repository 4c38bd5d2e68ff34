"""Ctrl-C during calls into JAX that Python cannot interrupt."""

from collections.abc import Generator
import contextlib
import os
import signal
import threading

from llama_cpt.runtime.distributed import end_processes
from llama_cpt.runtime.errors import INTERRUPTED

GRACE_SECONDS = 3.0
"""Number of seconds after Ctrl-C in which the command can end by itself."""
_END = b"\0"


@contextlib.contextmanager
def end_on_interrupt(message: str) -> Generator[None]:
    """Context manager that ends the command within seconds of the first Ctrl-C.

    All processes end with status ``INTERRUPTED``, after ``message`` is printed. Python raises
    KeyboardInterrupt only when the current call into JAX returns, and a batch can take minutes.
    Therefore, if the block has not ended after ``GRACE_SECONDS``, a thread ends the processes.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    ended = threading.Event()
    # Python writes the number of each signal to this file at once, also during a call into JAX.
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, ended, message), daemon=True)
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:
        ended.set()
        # Python's own shutdown would crash if a thread of JAX is still compiling.
        end_processes(INTERRUPTED, f"interrupted: {message}")
    finally:
        ended.set()
        signal.set_wakeup_fd(former)
        # Closing the pipe would not end the thread while a forked process holds the pipe open.
        os.write(writer, _END)
        watcher.join()
        os.close(writer)
        os.close(reader)


def _watch(reader: int, ended: threading.Event, message: str) -> None:
    """Wait for SIGINT and then end all processes, unless ``ended`` is set in time."""
    while (number := os.read(reader, 1)) != _END:
        if number[0] == signal.SIGINT and not ended.wait(GRACE_SECONDS):
            end_processes(INTERRUPTED, f"interrupted: {message}")
