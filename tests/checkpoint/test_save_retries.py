"""Saves are retried after transient storage errors, but not after other errors."""

import errno
import itertools
import os
import subprocess
import sys
from typing import Any

from etils import epath
import jax.numpy as jnp
import pytest

from llama_cpt.checkpoint import manifest
from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.errors import SaveError, StorageError
from llama_cpt.checkpoint.run_folder import save_with_retries
from llama_cpt.runtime import retry
from tests.storage_server import storage

STATE = {"trained": {"w": jnp.ones(8)}}


@pytest.fixture
def fail(monkeypatch):
    """Return ``fail(number, times)``, after which ``times`` commits raise OSError ``number``."""
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    real = manifest.commit

    def set_up(number: int, times: int) -> list[int]:
        tries: list[int] = []

        def commit(*arguments: Any) -> None:
            tries.append(0)
            if len(tries) <= times:
                raise OSError(number, os.strerror(number))
            real(*arguments)

        monkeypatch.setattr(manifest, "commit", commit)
        return tries

    return set_up


def test_transient_error_is_retried(tmp_path, fail, caplog):
    tries = fail(errno.EIO, 2)
    with CheckpointManager(str(tmp_path), 9) as checkpoints:
        save_with_retries(checkpoints, 1, STATE, {})
        save_with_retries(checkpoints, 2, STATE, {}, wait=True)
        assert checkpoints.steps() == [2] and len(tries) == 3
    assert "the checkpoint of step 1 was not saved: [Errno 5] Input/output error" in caplog.text
    assert caplog.text.count("Step 2 is saved instead, in 0 s.") == 2


def test_local_error_is_not_retried(tmp_path, monkeypatch):
    """The other processes wait inside Orbax, so the save cannot be repeated without a restart."""
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    with CheckpointManager(str(tmp_path), 9) as checkpoints:
        tries = []

        def fails(*_: object, **__: object) -> None:
            tries.append(0)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(checkpoints._orbax, "save", fails)
        monkeypatch.setattr("llama_cpt.checkpoint.checkpoint.process_count", lambda: 2)
        with pytest.raises(SaveError, match="step 1 was not saved") as failed:
            save_with_retries(checkpoints, 1, STATE, {})
        monkeypatch.undo()
    assert failed.value.status == 75 and len(tries) == 1


def test_checkpoint_that_cannot_be_removed_stays(tmp_path, monkeypatch, caplog):
    real = manifest.discard

    def fails(folder: epath.Path, step: int) -> None:
        if step == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(folder, step)

    with CheckpointManager(str(tmp_path), 1) as checkpoints:
        save_with_retries(checkpoints, 1, STATE, {}, wait=True)
        monkeypatch.setattr(manifest, "discard", fails)
        save_with_retries(checkpoints, 2, STATE, {}, wait=True)
        assert checkpoints.steps() == [1, 2]
        assert "old checkpoints were not removed ([Errno 5] Input/output error)" in caplog.text
        monkeypatch.setattr(manifest, "discard", real)
        save_with_retries(checkpoints, 3, STATE, {}, wait=True)
        assert checkpoints.steps() == [3]


@pytest.mark.parametrize("reads", [2, 99])
def test_unreadable_checkpoint_is_not_damaged(reads, tmp_path, monkeypatch):
    """The newest checkpoint is read after retries, or a transient error is raised."""
    with CheckpointManager(str(tmp_path), 2) as checkpoints:
        save_with_retries(checkpoints, 1, STATE, {}, wait=True)
        save_with_retries(checkpoints, 2, STATE, {}, wait=True)
    monkeypatch.setattr(retry, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    real, tries = manifest.size_and_digest, itertools.count()

    def digest_of(path: epath.Path) -> tuple[int, str]:
        if next(tries) < reads:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(manifest, "size_and_digest", digest_of)
    with CheckpointManager(str(tmp_path), 2) as checkpoints:
        if reads < 4:
            assert checkpoints.latest_verified() == 2
        else:
            with pytest.raises(
                StorageError, match="cannot be read .* move the checkpoint"
            ) as failed:
                checkpoints.latest_verified()
            assert failed.value.status == 75
        assert checkpoints.steps() == [1, 2]


BUCKET = """
import os, urllib.request
import jax.numpy as jnp
from llama_cpt.checkpoint import manifest
from llama_cpt.checkpoint.checkpoint import CheckpointManager
state = {"trained": {"w": jnp.arange(8)}}
with CheckpointManager("gs://bucket/run/checkpoints") as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, state, {})
        checkpoints.wait()
    assert checkpoints.latest_verified() == 2 and checkpoints.steps() == [2]
    assert checkpoints.restore(2, state)["trained"]["w"][7] == 7
    part = "run%2Fcheckpoints%2F2.manifest-00000-of-00001.json"
    gone = f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/bucket/o/{part}"
    urllib.request.urlopen(urllib.request.Request(gone, method="DELETE"))
    assert manifest.committed_steps(checkpoints.folder) == []
"""


@pytest.mark.slow
def test_changes_by_others_in_a_bucket_are_seen(tmp_path):
    """A checkpoint that a different process damages is detected at the next verification."""
    with storage(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", BUCKET], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("number", "tries"), [(errno.EIO, 4), (errno.ENOSPC, 1)])
def test_permanent_error_is_raised(number, tries, tmp_path, fail):
    tried = fail(number, 99)
    with CheckpointManager(str(tmp_path), 9) as checkpoints:
        with pytest.raises(SaveError, match="step 1 was not saved"):
            save_with_retries(checkpoints, 1, STATE, {}, wait=True)
        assert len(tried) == tries and checkpoints.steps() == []
