"""Processes of one command as threads of this process, with a coordination client in memory.

The threads run the real code of ``llama_cpt.runtime.distributed``. Only the client of the
coordination service, the state of ``jax.distributed`` and the end of a process are replaced. All
threads have the same devices, so arrays cannot be partitioned over these processes.
"""

from collections.abc import Callable, Generator
import contextlib
from dataclasses import dataclass, field
import os
import signal
import threading
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import jax
import pytest

from llama_cpt.runtime import distributed

RunProcesses = Callable[..., list[Any]]
ABORTED = 128 + signal.SIGABRT
"""Exit status of a process that called ``os.abort``."""


@dataclass(frozen=True)
class Exited:
    """The result of a process that called ``os._exit`` or ``os.abort``."""

    status: int


@dataclass
class Service:
    """The values and barriers that the clients of all processes share."""

    count: int
    """Number of processes."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    values: dict[str, str] = field(default_factory=dict)
    barriers: dict[str, threading.Barrier] = field(default_factory=dict)
    exits: int = 0
    """Number of processes that have exited."""


class Process:
    """One process: its index, its numbers of calls and its end."""

    def __init__(self, service: Service, index: int) -> None:
        self.service, self.index = service, index
        self.client = Client(service, self)
        self.call_counts: dict[str, int] = {}
        self.exited = threading.Event()
        self.status, self.finished = 0, False
        self.watchers: list[threading.Thread] = []
        """The threads that can end this process because another one has ended."""

    def exit(self, status: int) -> None:
        """End the calling thread; the other threads of this process end at their next message."""
        service = self.service
        with service.lock:
            if not self.exited.is_set():
                self.status, service.exits = status, service.exits + 1
                self.exited.set()
            for barrier in service.barriers.values():
                barrier.abort()
        raise SystemExit(status)


class Client:
    """The part of the coordination service's client that ``distributed`` uses."""

    def __init__(self, service: Service, process: Process | None = None) -> None:
        self._service, self._process = service, process

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """Store ``value``; raise JaxRuntimeError if the key exists and must not be overwritten."""
        self._require_running()
        with self._service.lock:
            if key in self._service.values and not allow_overwrite:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: key {key} already exists.")
            self._service.values[key] = value

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """Return the keys below ``key`` with their values, in the order in which they were set."""
        self._require_running()
        with self._service.lock:
            found = list(self._service.values.items())
        return [(name, value) for name, value in found if name.startswith(f"{key}/")]

    def key_value_delete(self, key: str) -> None:
        """Delete ``key`` and all keys below it."""
        self._require_running()
        with self._service.lock:
            for name in [*self._service.values]:
                if name == key or name.startswith(f"{key}/"):
                    del self._service.values[name]

    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None:
        """Wait for all processes; raise JaxRuntimeError on all that wait if one is late.

        As in the real client, whose code is C++, signal handlers run after this call.
        """
        self._require_running()
        service, seconds = self._service, timeout_in_ms / 1000
        with service.lock:
            barrier = service.barriers.setdefault(barrier_id, threading.Barrier(service.count))
        try:
            with _signals_deferred():
                barrier.wait(seconds)
        except threading.BrokenBarrierError:
            if self._process and service.exits:
                # The others wait until the thread that watches them ends their process.
                self._process.exited.wait(seconds)
            self._require_running()
            raise jax.errors.JaxRuntimeError(
                f"DEADLINE_EXCEEDED: Barrier timed out. Id: {barrier_id}"
            ) from None

    def _require_running(self) -> None:
        if self._process and self._process.exited.is_set():
            raise SystemExit(self._process.status)
        if self._process and self._process.finished:
            raise jax.errors.JaxRuntimeError("ABORTED: the process has ended.")


@contextlib.contextmanager
def _signals_deferred() -> Generator[None]:
    """Context manager that delays the handler of SIGTERM in the main thread until its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handler = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        for number in received:
            signal.raise_signal(number)


_by_thread: WeakKeyDictionary[threading.Thread, Process] = WeakKeyDictionary()


def _current() -> Process | None:
    """Return the process of the current thread; None outside ``run_processes``."""
    return _by_thread.get(threading.current_thread())


class _State:
    """The state of ``jax.distributed`` in the process of the current thread."""

    @property
    def num_processes(self) -> int:
        process = _current()
        return process.service.count if process else 1

    @property
    def process_id(self) -> int:
        process = _current()
        return process.index if process else 0

    @property
    def client(self) -> Client | None:
        process = _current()
        return process.client if process else None


class _CallCounts:
    """The numbers of calls in the process of the current thread."""

    def __getitem__(self, purpose: str) -> int:
        return self._counts()[purpose]

    def __setitem__(self, purpose: str, calls: int) -> None:
        self._counts()[purpose] = calls

    def get(self, purpose: str, default: int) -> int:
        return self._counts().get(purpose, default)

    def _counts(self) -> dict[str, int]:
        process = _current()
        assert process, "a single process counts no calls"
        return process.call_counts


def _without_exit(run: Callable[[], None]) -> Callable[[], None]:
    """Return ``run`` without the SystemExit with which a thread of an ended process ends."""

    def quiet() -> None:
        with contextlib.suppress(SystemExit):
            run()

    return quiet


def _exit(status: int) -> None:
    process = _current()
    assert process, "only a process of run_processes may exit"
    process.exit(status)


def _set_handler(number: int, handler: Any) -> Any:
    """Set a signal handler; only the main thread can have one."""
    if threading.current_thread() is threading.main_thread():
        return signal.signal(number, handler)
    return None


@pytest.fixture
def run_processes(monkeypatch: pytest.MonkeyPatch) -> RunProcesses:
    """``run_processes(count, work)``: call ``work(index)`` in ``count`` processes at once.

    The result is a list with the value, the exception or ``Exited`` of each process, by index. A
    thread belongs to the process that started it. ``in_main_thread`` is the index of a process that
    runs in the calling thread and gets the signals.
    """
    real_start = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if process := _current():
            _by_thread[thread] = process
            thread.run = _without_exit(thread.run)
            if thread.name == distributed.WATCH_THREAD:
                process.watchers.append(thread)
        real_start(thread)

    ends = SimpleNamespace(environ=os.environ, _exit=_exit, abort=lambda: _exit(ABORTED))
    signals = SimpleNamespace(signal=_set_handler, SIGTERM=signal.SIGTERM)
    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(distributed, "global_state", _State())
    monkeypatch.setattr(distributed, "_call_counts", _CallCounts())
    monkeypatch.setattr(distributed, "os", ends)
    monkeypatch.setattr(distributed, "signal", signals)
    monkeypatch.setattr(distributed, "_POLL_SECONDS", 0.01)
    monkeypatch.setenv(distributed.HEARTBEAT_VARIABLE, "1")
    return _run


def _run(
    count: int,
    work: Callable[[int], Any],
    *,
    in_main_thread: int | None = None,
    seconds: float = 60,
) -> list[Any]:
    service = Service(count)
    processes = [Process(service, index) for index in range(count)]
    results: list[Any] = [None] * count

    def run(process: Process) -> None:
        _by_thread[threading.current_thread()] = process
        try:
            distributed.kv_put("host", f"host-{process.index}")
            results[process.index] = work(process.index)
        except BaseException as error:  # A result of the test, also if the process exits.
            results[process.index] = error
        finally:
            process.finished = True
            del _by_thread[threading.current_thread()]

    threads = [
        threading.Thread(target=run, args=(process,), name=f"process {process.index}", daemon=True)
        for process in processes
        if process.index != in_main_thread
    ]
    for thread in threads:
        thread.start()
    if in_main_thread is not None:
        run(processes[in_main_thread])
    for thread in threads:
        thread.join(seconds)
    # A watcher that is about to exit would end the test itself after the test has restored ``os``.
    watchers = [watcher for process in processes for watcher in process.watchers]
    for watcher in watchers:
        watcher.join(seconds)
    late = [thread.name for thread in (*threads, *watchers) if thread.is_alive()]
    assert not late, f"still running after {seconds} s: {', '.join(late)}"
    for process in processes:
        if process.exited.is_set():
            results[process.index] = Exited(process.status)
    return results
