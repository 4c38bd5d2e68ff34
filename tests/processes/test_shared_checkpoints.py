"""Tests that several processes agree about their common checkpoints and their storage errors.

The processes are threads of this one. The primary writes all arrays with Orbax, and every process
commits and verifies its part of the files.
"""

import errno
import os
from pathlib import Path
import time
from typing import Any

from etils import epath
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from llama_cpt.checkpoint import manifest
from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.errors import SaveError
from llama_cpt.checkpoint.orbax_handler import orbax_handler
from llama_cpt.checkpoint.run_folder import save_with_retries
from llama_cpt.runtime import retry
from llama_cpt.runtime.distributed import distributed_session, process_index
from llama_cpt.runtime.errors import PREEMPTED, USER_ERROR
from tests.processes.in_process import Exited


def state(step: int) -> dict[str, Any]:
    return {"trained": {f"w{name}": jnp.full(64, step, jnp.float32) for name in range(6)}}


class FollowingCheckpointer(ocp.AsyncCheckpointer):
    """A checkpointer that writes nothing and waits for the folder that the primary writes."""

    _folder: epath.Path | None = None

    def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
        self._folder = epath.Path(directory)

    def wait_until_finished(self) -> None:
        deadline = time.monotonic() + 20
        while self._folder is not None and not self._folder.exists():
            assert time.monotonic() < deadline, f"{self._folder} was not written"
            time.sleep(0.002)


def open_checkpoints(folder: Path) -> CheckpointManager:
    """Return the checkpoints in ``folder`` for the current process."""
    checkpoints = CheckpointManager(str(folder), keep=9)
    if process_index() > 0:
        checkpoints._orbax.close()
        checkpoints._orbax = FollowingCheckpointer(orbax_handler())
    return checkpoints


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.01, 0.01, 0.01))


def parts(folder: Path, step: int) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{step}.manifest-*"))


def test_every_process_commits_a_part_of_the_files(run_processes, tmp_path):
    def save(index: int) -> list[int]:
        with open_checkpoints(tmp_path) as checkpoints:
            save_with_retries(checkpoints, 1, state(1), {"step": 1}, wait=True)
            save_with_retries(checkpoints, 1, state(2), {"step": 1}, wait=True)
            return [*checkpoints.steps(), checkpoints.latest_verified() or 0]

    assert run_processes(3, save) == [[1, 1]] * 3
    assert parts(tmp_path, 1) == [f"1.manifest-0000{part}-of-00003.json" for part in range(3)]
    with CheckpointManager(str(tmp_path)) as checkpoints:
        assert checkpoints.latest_verified() == 1
        assert checkpoints.restore(1, state(0))["trained"]["w0"][0] == 1


@pytest.mark.parametrize(
    ("number", "status", "reason"),
    [
        (errno.ENOSPC, USER_ERROR, "the disk is full"),
        (errno.EIO, PREEMPTED, "[Errno 5] Input/output error"),
    ],
)
def test_failed_save_in_one_process_is_an_error_in_all_with_the_reason(
    number, status, reason, run_processes, tmp_path, monkeypatch
):
    sync = manifest._sync

    def fails(path: epath.Path) -> None:
        if process_index() == 1:
            raise OSError(number, os.strerror(number))
        sync(path)

    def save(index: int) -> None:
        with open_checkpoints(tmp_path) as checkpoints:
            save_with_retries(checkpoints, 1, state(1), {}, wait=True)

    monkeypatch.setattr(manifest, "_sync", fails)
    errors = run_processes(2, save)
    for error in errors:
        assert isinstance(error, SaveError) and error.status == status
        assert f"the checkpoint of step 1 was not saved: {reason}" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_in_one_process_ends_all_with_the_reason(
    run_processes, tmp_path, monkeypatch, capsys
):
    sync = manifest._sync

    def fails(path: epath.Path) -> None:
        if process_index() == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    def save(index: int) -> None:
        with distributed_session(), open_checkpoints(tmp_path) as checkpoints:
            save_with_retries(checkpoints, 1, state(1), {}, wait=True)

    monkeypatch.setattr(manifest, "_sync", fails)
    assert run_processes(2, save) == [Exited(USER_ERROR)] * 2
    message = capsys.readouterr().err
    assert f"error: {tmp_path}: the checkpoint of step 1 was not saved: the disk is full" in message
    assert "Traceback" not in message


def test_process_that_cannot_commit_does_not_end_the_others(
    run_processes, tmp_path, monkeypatch, caplog
):
    """Files that another process still reads are not removed."""
    sync, commit_file = manifest._sync, manifest._commit_file

    def fails(path: epath.Path) -> None:
        if process_index() == 0 and f"{tmp_path}/1/" in f"{path}/":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(path)

    def slow(path: epath.Path) -> tuple[int, str]:
        time.sleep(0.5 if process_index() == 1 else 0)
        return commit_file(path)

    def save(index: int) -> list[int]:
        with open_checkpoints(tmp_path) as checkpoints:
            save_with_retries(checkpoints, 1, state(1), {})
            save_with_retries(checkpoints, 2, state(2), {}, wait=True)
            return checkpoints.steps()

    monkeypatch.setattr(manifest, "_sync", fails)
    monkeypatch.setattr(manifest, "_commit_file", slow)
    assert run_processes(2, save) == [[2], [2]]
    assert caplog.text.count("Input/output error. Earlier checkpoints") == 1
    assert caplog.text.count("Step 2 is saved instead") == 1
    assert not (tmp_path / "1").exists() and len(parts(tmp_path, 2)) == 2


def test_failed_write_of_one_process_is_not_retried_by_it_alone(
    run_processes, tmp_path, monkeypatch
):
    """The other process waits inside Orbax, and the first announces its exit."""

    def save(index: int) -> None:
        with distributed_session(), open_checkpoints(tmp_path) as checkpoints:
            if index == 1:
                monkeypatch.setattr(checkpoints._orbax, "save", fails)
            save_with_retries(checkpoints, 1, state(1), {}, wait=True)

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert run_processes(2, save) == [Exited(PREEMPTED)] * 2


def test_all_processes_fall_back_if_one_finds_damage(run_processes, tmp_path, caplog):
    with CheckpointManager(str(tmp_path), keep=9) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"step": step})
    files = [path for path in (tmp_path / "2").rglob("*") if path.is_file()]
    damaged = max(files, key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1])

    def newest(index: int) -> int | None:
        with open_checkpoints(tmp_path) as checkpoints:
            return checkpoints.latest_verified()

    assert run_processes(3, newest) == [1, 1, 1]
    assert caplog.text.count("checkpoint 2 is damaged") == 1
    assert caplog.text.count("falling back to the checkpoint of step 1") == 1


def test_primary_chooses_the_checkpoint_if_others_see_fewer(run_processes, tmp_path, monkeypatch):
    """A shared folder can show new files to other processes with a delay."""
    with CheckpointManager(str(tmp_path), keep=9) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"step": step})
    committed = manifest.committed_steps

    def seen(folder: epath.Path) -> list[int]:
        return committed(folder)[: 1 if process_index() == 1 else None]

    def newest(index: int) -> int | None:
        with open_checkpoints(tmp_path) as checkpoints:
            return checkpoints.latest_verified()

    monkeypatch.setattr(manifest, "committed_steps", seen)
    assert run_processes(2, newest) == [2, 2]
