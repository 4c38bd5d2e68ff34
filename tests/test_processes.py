"""What one process sees of the rules that many live by; tests/processes has the many."""

import socket
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from llama_cpt import errors, global_arrays, patience, processes
from llama_cpt.errors import UserError, one_line_errors
from llama_cpt.global_arrays import from_rows_here, from_whole, rows_here
from llama_cpt.patience import patiently
from llama_cpt.processes import (
    LostProcessError,
    all_hold,
    by_first,
    from_first,
    gathered,
    require_one,
    together,
)
from llama_cpt.training.storage_error import SaveError
from tests.conftest import ROOT

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("localhost:1", "", ""), "JAX_NUM_PROCESSES, JAX_PROCESS_ID: set all three"),
        (("localhost:1", "2", "2"), "JAX_PROCESS_ID=2 with JAX_NUM_PROCESSES=2"),
        (("localhost:1", "two", "0"), "JAX_NUM_PROCESSES=two"),
        (("localhost", "2", "0"), "JAX_COORDINATOR_ADDRESS=localhost: give HOST:PORT"),
        (("localhost:abc", "2", "0"), "JAX_COORDINATOR_ADDRESS=localhost:abc: give HOST:PORT"),
        (("localhost:65536", "2", "0"), "JAX_COORDINATOR_ADDRESS=localhost:65536: give HOST:PORT"),
    ],
)
def test_half_an_environment_is_refused(values, told, monkeypatch):
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told), together():
        pass


@pytest.mark.parametrize("taken", [True, False])
def test_what_keeps_processes_from_meeting_is_worth_a_new_start(taken, monkeypatch):
    """A port that another has, a coordinator whose name nobody knows yet."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1] if taken else 1
        for name, value in zip(NAMES, (f"pod-0:{port}", "2", "0" if taken else "1"), strict=True):
            monkeypatch.setenv(name, value)
        unknown = Mock(side_effect=RuntimeError("Failed to recognize coordinator address pod-0"))
        monkeypatch.setattr(jax.distributed, "initialize", unknown)
        with pytest.raises(LostProcessError, match=f"port {port} .* cannot" if taken else "pod-0"):
            processes._meet()
    assert unknown.called != taken


def test_commands_of_one_process_say_so(monkeypatch):
    require_one("sweep")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="sweep is one process"):
        require_one("sweep")


def test_alone_is_agreed():
    assert gathered("here", "test") == ["here"]
    assert all_hold(True, "test") and not all_hold(False, "test")
    assert from_first(7, "test") == 7
    assert by_first(lambda: {"done": [1, None]}, "test") == {"done": [1, None]}


def test_an_error_ends_a_command_with_its_status(capsys):
    for passing, status in ((True, 75), (False, 1)):
        with pytest.raises(SystemExit) as ended, one_line_errors():
            raise SaveError("not saved.", passing=passing)
        assert ended.value.code == status
        assert capsys.readouterr().err == "error: not saved.\n"


CRASH = "failed: RuntimeError: INTERNAL: a core halted"


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("no such field."), 1, "error: no such field."),
        (OSError("No space left on device"), 1, "error: No space left on device"),
        (OSError("it passes"), 75, "error: it passes"),
        (RuntimeError("503: it passes"), 75, "failed: RuntimeError: 503: it passes"),
        (RuntimeError("UNAVAILABLE: a\npeer"), 75, "failed: RuntimeError: UNAVAILABLE: a"),
        (RuntimeError("INTERNAL: a core halted\nat 0x0"), 1, CRASH),
    ],
)
def test_an_error_ends_one_as_it_ends_many(error, status, told, monkeypatch):
    left = []
    monkeypatch.setattr(errors, "passes", lambda error: "it passes" in str(error))
    monkeypatch.setattr(processes, "heartbeat_seconds", lambda: 0)
    monkeypatch.setattr(processes, "_leave", lambda *said: left.append(said))
    with processes._one_end():
        raise error
    assert left == [(status, told)]
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == status


def test_the_fake_cloud_crashes_as_a_process_does():
    assert f'"{CRASH}"' in (ROOT / "tests" / "launch" / "fake_cloud.sh").read_text()


def test_patience_outlasts_what_passes_and_no_more(monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", (0.0, 0.0, 0.0))
    tries: list[int] = []

    def work(fails: int, words: str) -> int:
        tries.append(0)
        if len(tries) <= fails:
            raise OSError(words)
        return len(tries)

    assert patiently(lambda: work(3, "Input/output error")) == 4
    tries.clear()
    with pytest.raises(OSError, match="output"):
        patiently(lambda: work(4, "Input/output error"))
    tries.clear()
    with pytest.raises(OSError, match="space"):
        patiently(lambda: work(1, "No space left on device"))
    assert len(tries) == 1


@pytest.mark.parametrize(("axes", "shared"), [((4, 2), True), ((8, 1), False)])
def test_hosts_hold_all_rows_between_them(axes, shared, monkeypatch):
    """Also where the mesh deals rows to two hosts in turn, and where they share rows."""
    mesh = jax.make_mesh(axes, ("fsdp", "tensor"))
    sharding = jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
    each = []
    for host in (0, 1):
        own = lambda device, host=host: device.id % 2 == host
        monkeypatch.setattr(global_arrays, "_is_own", own)
        each.append(rows_here(sharding, 16).tolist())
    assert sorted({*each[0], *each[1]}) == list(range(16))
    assert (each[0] == each[1]) is shared
    assert all(len(rows) == (16 if shared else 8) for rows in each)


def test_arrays_arrive_where_they_belong():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    whole = np.arange(2 * 8 * 6).reshape(2, 8, 6)
    sharding = jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
    for placed in (from_rows_here({"a": whole}, 8, sharding), from_whole({"a": whole}, sharding)):
        assert placed["a"].sharding == sharding
        np.testing.assert_array_equal(placed["a"], whole)
