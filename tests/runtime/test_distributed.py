"""Tests of processes, exit statuses and retries in a single process; see also tests/processes."""

import errno
import os
import socket
from unittest.mock import Mock

from gcsfs.retry import HttpError
import jax
import numpy as np
import pytest

from examples.shown_command import run_command
from llama_cpt.checkpoint.errors import SaveError
from llama_cpt.parallel import global_arrays
from llama_cpt.parallel.global_arrays import RowPlacement, from_replicated, local_rows
from llama_cpt.plan import DoesNotFitError
from llama_cpt.runtime import distributed, retry
from llama_cpt.runtime.distributed import (
    LostProcessError,
    all_processes_agree,
    allgather_strings,
    broadcast_from_primary,
    distributed_session,
    require_single_process,
    run_on_primary,
)
from llama_cpt.runtime.errors import UsageError, UserError, one_line_errors
from llama_cpt.runtime.retry import with_retries
from llama_cpt.runtime.storage import UnreachableError
from llama_cpt.training.report import DivergedError

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("localhost:1", "", ""), "without JAX_NUM_PROCESSES, JAX_PROCESS_ID; set all three"),
        (("localhost:1", "2", "2"), "JAX_PROCESS_ID=2 with JAX_NUM_PROCESSES=2"),
        (("localhost:1", "two", "0"), "JAX_NUM_PROCESSES=two"),
        (("localhost", "2", "0"), "JAX_COORDINATOR_ADDRESS=localhost must be HOST:PORT"),
        (("localhost:abc", "2", "0"), "JAX_COORDINATOR_ADDRESS=localhost:abc must be HOST:PORT"),
        (
            ("localhost:65536", "2", "0"),
            "JAX_COORDINATOR_ADDRESS=localhost:65536 must be HOST:PORT",
        ),
    ],
)
def test_incomplete_environment_is_rejected(values, expected, monkeypatch):
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=expected), distributed_session():
        pass


@pytest.mark.parametrize("taken", [True, False])
def test_failed_connection_is_transient(taken, monkeypatch):
    """The port is in use, or the name of the coordinator cannot be resolved yet."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1] if taken else 1
        for name, value in zip(NAMES, (f"pod-0:{port}", "2", "0" if taken else "1"), strict=True):
            monkeypatch.setenv(name, value)
        unknown = Mock(side_effect=RuntimeError("Failed to recognize coordinator address pod-0"))
        monkeypatch.setattr(jax.distributed, "initialize", unknown)
        with pytest.raises(LostProcessError, match=f"port {port} .* cannot" if taken else "pod-0"):
            distributed._connect()
    assert unknown.called != taken


def test_single_process_command_rejects_several(monkeypatch):
    require_single_process("sweep")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(UserError, match="sweep runs as one process"):
        require_single_process("sweep")


def test_single_process_agrees_with_itself():
    assert allgather_strings("here", "test") == ["here"]
    assert all_processes_agree(True, "test") and not all_processes_agree(False, "test")
    assert broadcast_from_primary(7, "test") == 7
    assert run_on_primary(lambda: {"done": [1, None]}, "test") == {"done": [1, None]}


def system(number: int) -> OSError:
    return OSError(number, os.strerror(number))


PERMANENT = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
)
TRANSIENT = errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNRESET
BUSY = {"code": 503, "message": "try again"}
DENIED = {"code": 403, "message": "no such right"}


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("no such field."), 78, "error: no such field."),
        (UsageError("no such option."), 2, "error: no such option."),
        (DivergedError("the loss is lost."), 78, "error: the loss is lost."),
        (DoesNotFitError("no mesh fits."), 3, "error: no mesh fits."),
        (SaveError("not saved.", transient=True), 75, "error: not saved."),
        (SaveError("not saved.", transient=False), 78, "error: not saved."),
        (UnreachableError("no answer."), 75, "error: no answer."),
        *((system(number), 78, f"error: {system(number)}") for number in PERMANENT),
        *((system(number), 75, f"error: {system(number)}") for number in TRANSIENT),
        # Orbax has the words and no number; a number may come without words.
        (OSError("No space left on device"), 78, "error: No space left on device"),
        (OSError(errno.EROFS, "?"), 78, f"error: [Errno {errno.EROFS}] ?"),
        (HttpError(BUSY), 75, "failed: HttpError: try again, 503"),
        (HttpError(DENIED), 78, "failed: HttpError: no such right, 403"),
        (RuntimeError("UNAVAILABLE: a\npeer"), 75, "failed: RuntimeError: UNAVAILABLE: a"),
        (RuntimeError("INTERNAL: a core\nat 0x0"), 1, "failed: RuntimeError: INTERNAL: a core"),
        (ValueError("error: a bug"), 1, "failed: ValueError: error: a bug"),
        (KeyError("w"), 1, "failed: KeyError: 'w'"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(65), 65, "stopped"),
    ],
    ids=repr,
)
def test_error_has_one_status_for_one_and_several_processes(
    error, status, message, monkeypatch, capsys
):
    exits = []
    monkeypatch.setattr(distributed, "heartbeat_seconds", lambda: 0)
    monkeypatch.setattr(distributed, "_announce_exit", lambda *notice: exits.append(notice))
    with distributed._end_together():
        raise error
    assert exits == [(status, message)]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == status
    shown = capsys.readouterr().err
    if message.startswith("failed: "):
        assert shown.startswith("Traceback ")
    elif message != "stopped":
        assert shown == f"{message}\n"


@pytest.mark.parametrize(
    ("ending", "status"), [("exit(65)", 65), ("exit(1)", 1), ("abort()", 134), ("kill(9)", 137)]
)
def test_run_command_exits_with_the_status_of_the_command(
    ending, status, tmp_path, monkeypatch, capfd
):
    """The demo exits with the status of the command that failed."""
    (tmp_path / "llama_cpt").mkdir()
    (tmp_path / "llama_cpt" / "__init__.py").touch()
    code = {"exit": "os._exit({0})", "abort": "os.abort()", "kill": "os.kill(os.getpid(), {0})"}
    name, _, number = ending.rstrip(")").partition("(")
    (tmp_path / "llama_cpt" / "train.py").write_text(f"import os\n{code[name].format(number)}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        run_command("train", "CONFIG")
    assert ended.value.code == status
    assert f"CONFIG` ended with status {status}; see above." in capfd.readouterr().err


def test_only_transient_errors_are_retried_three_times(monkeypatch):
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    tries: list[int] = []

    def work(fails: int, words: str) -> int:
        tries.append(0)
        if len(tries) <= fails:
            raise OSError(words)
        return len(tries)

    assert with_retries(lambda: work(3, "Input/output error")) == 4
    tries.clear()
    with pytest.raises(OSError, match="output"):
        with_retries(lambda: work(4, "Input/output error"))
    tries.clear()
    with pytest.raises(OSError, match="space"):
        with_retries(lambda: work(1, "No space left on device"))
    assert len(tries) == 1


@pytest.mark.parametrize(("axes", "shared"), [((4, 2), True), ((8, 1), False)])
def test_hosts_together_have_all_rows(axes, shared, monkeypatch):
    """The mesh interleaves the rows of two hosts, or both hosts have all rows."""
    mesh = jax.make_mesh(axes, ("fsdp", "tensor"))
    sharding = jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
    each = []
    for host in (0, 1):
        own = lambda device, host=host: device.id % 2 == host
        monkeypatch.setattr(global_arrays, "_is_own", own)
        each.append(local_rows(sharding, 16).tolist())
    assert sorted({*each[0], *each[1]}) == list(range(16))
    assert (each[0] == each[1]) is shared
    assert all(len(rows) == (16 if shared else 8) for rows in each)


def test_arrays_have_the_requested_sharding_and_values():
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    whole = np.arange(2 * 8 * 6).reshape(2, 8, 6)
    sharding = jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
    for placed in (
        RowPlacement(sharding, 8).to_global({"a": whole}),
        from_replicated({"a": whole}, sharding),
    ):
        assert placed["a"].sharding == sharding
        np.testing.assert_array_equal(placed["a"], whole)
