"""The first Ctrl-C ends a command, even during a call that Python cannot interrupt."""

import hashlib
import os
import signal
import threading
import time

import pytest

from llama_cpt.runtime import interrupt
from llama_cpt.runtime.interrupt import end_on_interrupt


@pytest.fixture
def ended(monkeypatch):
    """A list of the calls that would have ended the process.

    The first value of a call is True if the main thread made the call.
    """
    calls = []

    def end(status, message):
        calls.append((threading.current_thread() is threading.main_thread(), status, message))

    monkeypatch.setattr(interrupt, "end_processes", end)
    # A process that a shell started in the background ignores Ctrl-C.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield calls
    signal.signal(signal.SIGINT, former)


def interrupt_soon():
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()


def test_call_that_cannot_be_interrupted_is_ended(ended, monkeypatch):
    monkeypatch.setattr(interrupt, "GRACE_SECONDS", 0.05)
    with end_on_interrupt("continue later."):
        interrupt_soon()
        deadline = time.monotonic() + 60
        while not ended and time.monotonic() < deadline:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)
    assert ended[0] == (False, 130, "interrupted: continue later.")


def test_block_that_can_be_interrupted_ends_first(ended):
    done = []
    with end_on_interrupt("continue later."):
        interrupt_soon()
        try:
            time.sleep(5)
        finally:
            done.append("stored")
    assert done and ended == [(True, 130, "interrupted: continue later.")]


def test_block_without_ctrl_c_ends_as_usual(ended):
    with end_on_interrupt("not shown"):
        pass
    assert not ended and signal.set_wakeup_fd(-1) == -1
