"""Tests of the messages between processes, with processes that are threads of this one."""

from collections.abc import Callable, Generator
import contextlib
import signal
import socket
import threading
import time
from typing import Any

import jax
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]
import pytest

from llama_cpt.runtime import distributed
from llama_cpt.runtime.distributed import (
    LostProcessError,
    all_processes_agree,
    allgather_strings,
    broadcast_from_primary,
    distributed_session,
    is_primary,
    kv_get,
    kv_put,
    primary_first,
    process_count,
    process_index,
    run_on_primary,
)
from llama_cpt.runtime.errors import PREEMPTED, USER_ERROR, UserError
from tests.processes.in_process import ABORTED, Client, Exited, RunProcesses, Service


@contextlib.contextmanager
def real_clients() -> Generator[list[Any]]:
    """Two clients of JAX's coordination service in this process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    service = _jax.get_distributed_runtime_service(address, 2)
    clients = [_jax.get_distributed_runtime_client(address, index) for index in range(2)]
    try:
        each_at_once([client.connect for client in clients])
        yield clients
        each_at_once([client.shutdown for client in clients])
    finally:
        service.shutdown()


def each_at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Call each function in a thread; return the results and the exceptions."""
    results: list[Any] = [None] * len(calls)

    def call(number: int) -> None:
        try:
            results[number] = calls[number]()
        except jax.errors.JaxRuntimeError as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture(params=["real", "in_process"])
def clients(request) -> Generator[list[Any]]:
    if request.param == "real":
        with real_clients() as found:
            yield found
    else:
        service = Service(2)
        yield [Client(service), Client(service)]


def test_client_in_process_behaves_like_the_real_one(clients):
    first, second = clients
    first.key_value_set("topic/000001", "a")
    second.key_value_set("topic/000000", "b")
    second.key_value_set("topics/000000", "c")
    assert sorted(first.key_value_dir_get("topic")) == [
        ("topic/000000", "b"),
        ("topic/000001", "a"),
    ]
    with pytest.raises(jax.errors.JaxRuntimeError, match="ALREADY_EXISTS"):
        second.key_value_set("topic/000001", "d")
    second.key_value_set("topic/000001", "d", allow_overwrite=True)
    assert dict(first.key_value_dir_get("topic"))["topic/000001"] == "d"
    first.key_value_delete("topic")
    assert second.key_value_dir_get("topic") == []
    assert second.key_value_dir_get("topics") == [("topics/000000", "c")]
    for _ in range(2):  # A barrier can be used again.
        waits = [lambda client=client: client.wait_at_barrier("met", 5000) for client in clients]
        assert each_at_once(waits) == [None, None]
    with pytest.raises(jax.errors.JaxRuntimeError, match="DEADLINE_EXCEEDED"):
        first.wait_at_barrier("alone", 100)


def test_each_process_has_its_own_index(run_processes: RunProcesses):
    facts = lambda index: (process_count(), process_index(), is_primary())
    assert run_processes(3, facts) == [(3, 0, True), (3, 1, False), (3, 2, False)]
    assert facts(0) == (1, 0, True)


def test_allgather_is_ordered_by_process_index(run_processes):
    """The processes arrive in the opposite order, and the numbers have one and two digits."""

    def gather(index: int) -> list[list[str]]:
        time.sleep(0.01 * (11 - index))
        return [allgather_strings(f"{index} {call}", "order") for call in range(3)]

    values = [[f"{index} {call}" for index in range(12)] for call in range(3)]
    assert run_processes(12, gather) == [values] * 12


def test_allgather_deletes_the_values_of_the_previous_call(run_processes):
    def left(index: int) -> set[str]:
        for _ in range(3):
            allgather_strings("value", "repeated")
        allgather_strings("", "all deleted")
        return {key.split("/")[2] for key, _ in distributed._client().key_value_dir_get("gather")}

    assert run_processes(3, left) == [{"0", "2"}] * 3


def test_processes_agree_only_if_all_do(run_processes):
    def agree(index: int) -> tuple[bool, bool]:
        return all_processes_agree(True, "all"), all_processes_agree(index != 1, "not all")

    assert run_processes(3, agree) == [(True, False)] * 3


def test_lost_process_is_named_after_the_timeout(run_processes):
    def gather(index: int) -> list[str]:
        return [] if index == 1 else allgather_strings("", "checkpoint committed", seconds=2)

    first, lost, last = run_processes(3, gather)
    assert lost == []
    for error in (first, last):
        assert isinstance(error, LostProcessError)
        assert str(error) == "checkpoint committed: after 2 s still missing: process 1 (host-1)"


def test_broadcast_gives_the_value_of_the_primary(run_processes):
    def broadcast(index: int) -> list[int]:
        return [broadcast_from_primary(10 * call + index, "value") for call in range(3)]

    assert run_processes(3, broadcast) == [[0, 10, 20]] * 3


def test_only_the_primary_works_and_all_get_its_json_results(run_processes):
    results = [{"done": [1, None]}, None, "é\n", 0, False]
    called = []

    def run(index: int) -> list[Any]:
        def work(result: Any) -> Any:
            called.append(index)
            return result

        return [run_on_primary(lambda r=result: work(r), "results") for result in results]

    assert run_processes(3, run) == [results] * 3
    assert called == [0] * len(results)


def test_primary_works_first_and_all_get_their_own_results(run_processes):
    order = []

    def run(index: int) -> int:
        def work() -> int:
            if index == 0:
                time.sleep(0.1)
            order.append(index)
            return index

        return primary_first(work, "rows prepared")

    assert run_processes(3, run) == [0, 1, 2]
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


def test_published_value_replaces_the_earlier_one(run_processes):
    def publish(index: int) -> dict[int, str]:
        for value in ("first", "second"):
            kv_put("topic", f"{value} {index}")
        allgather_strings("", "published")
        return kv_get("topic")

    assert run_processes(3, publish) == [{i: f"second {i}" for i in range(3)}] * 3


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (UserError("the disk is full."), USER_ERROR, "error: the disk is full."),
        (SystemExit(PREEMPTED), PREEMPTED, "stopped"),
        (LostProcessError("process 3 is missing"), ABORTED, ""),
        (KeyError("w"), 1, "failed: KeyError: 'w'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_in_one_process_ends_all_with_its_status(
    error, status, reason, run_processes, capsys
):
    """The other processes wait: one for the primary's result and one at a barrier."""

    def work(index: int) -> None:
        with distributed_session():
            if index == 2:
                raise error
            allgather_strings("", "never", seconds=1 if status == ABORTED else 30)

    assert run_processes(3, work) == [Exited(status)] * 3
    message = capsys.readouterr().err
    if reason:
        assert f"\n{reason}\n" in f"\n{message}"
        assert f"process 2 (host-2) has ended: {reason}" in message


def test_finished_processes_do_not_exit(run_processes):
    def work(index: int) -> str:
        with distributed_session():
            return allgather_strings(str(index), "end")[-1]

    assert run_processes(2, work) == ["1", "1"]


def test_sigterm_ends_a_process_that_waits_for_the_primary(run_processes):
    """The primary prepares meanwhile and ends as well."""
    working = threading.Event()

    def prepare() -> None:
        working.set()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            # Ends this thread after the thread that watches the other processes has exited.
            kv_get("exits")
            time.sleep(0.01)

    def send_sigterm() -> None:
        working.wait()
        time.sleep(0.2)
        signal.raise_signal(signal.SIGTERM)

    def work(index: int) -> None:
        with distributed_session():
            primary_first(prepare, "token rows prepared")

    threading.Thread(target=send_sigterm, daemon=True).start()
    assert run_processes(2, work, in_main_thread=1) == [Exited(PREEMPTED)] * 2
