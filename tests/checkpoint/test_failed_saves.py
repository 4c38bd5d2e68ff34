"""A save that fails or is interrupted leaves earlier checkpoints and no partial files."""

import errno
import os
from pathlib import Path
import resource
import signal
import subprocess
import sys
import textwrap

from etils import epath
import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.checkpoint import manifest
from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.runtime.errors import UserError
from tests.checkpoint.test_checkpoint import load_trained, save_small, small

KILLS = int(os.environ.get("LLAMA_CPT_KILLS", "5"))
"""Number of kills of a process that saves."""


def test_interrupted_save_is_never_restored(tmp_path, caplog):
    save_small(tmp_path, 1, 2)
    (tmp_path / "2.manifest-00000-of-00001.json").unlink()
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "3.orbax-checkpoint-tmp" / "part").write_bytes(b"half")
    (tmp_path / "1.manifest-00000-of-00001.json.draft").write_text("{")
    with CheckpointManager(str(tmp_path), keep=3) as checkpoints:
        assert checkpoints.latest_verified() == 1
        assert "2 has no complete manifest" in caplog.text
        checkpoints.save(2, small(22), {})
        checkpoints.wait()
        assert checkpoints.latest_verified() == 2
        assert checkpoints.restore(2, small(0))["trained"]["w"][0] == 22
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1",
        "1.manifest-00000-of-00001.json",
        "2",
        "2.manifest-00000-of-00001.json",
    ]


def test_interrupted_removal_leaves_nothing_committed(tmp_path, monkeypatch):
    save_small(tmp_path, 1)
    folder = epath.Path(tmp_path)

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(folder), "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        manifest.discard(folder, 1)
    assert manifest.committed_steps(folder) == []


def random_state(megabytes):
    values = np.random.default_rng(0).standard_normal(megabytes * 250_000).astype(np.float32)
    return {"trained": {"w": jnp.asarray(values)}}


@pytest.fixture
def full_disk(tmp_path):
    """A folder in a file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def check_failed_save(folder, reason):
    """Assert that a save of 8 MB as step 2 fails with ``reason`` after a save of 1 MB as step 1."""
    with CheckpointManager(str(folder), keep=1) as checkpoints:
        with pytest.raises(UserError, match=rf"step 2 was not saved: {reason}.*\(steps: \[1\]\)"):
            checkpoints.save(2, random_state(8), {})
            checkpoints.wait()
        assert checkpoints.latest_verified() == 1
        checkpoints.save(3, random_state(1), {})
        checkpoints.wait()
        assert checkpoints.latest_verified() == 3
    assert sorted(p.name for p in Path(folder).iterdir()) == ["3", "3.manifest-00000-of-00001.json"]


def test_full_disk_during_a_save_keeps_earlier_checkpoints(full_disk):
    with CheckpointManager(str(full_disk)) as checkpoints:
        checkpoints.save(1, random_state(1), {})
    check_failed_save(full_disk, "the disk is full")


def test_failed_write_keeps_earlier_checkpoints(tmp_path):
    with CheckpointManager(str(tmp_path)) as checkpoints:
        checkpoints.save(1, random_state(1), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, hard))
    try:
        check_failed_save(tmp_path, ".*File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_during_a_commit_keeps_earlier_checkpoints(tmp_path, monkeypatch):
    save_small(tmp_path, 1)
    with CheckpointManager(str(tmp_path), keep=1) as checkpoints, monkeypatch.context() as patch:

        def no_space(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(manifest, "_sync", no_space)
        checkpoints.save(2, small(2), {})
        with pytest.raises(UserError, match="step 2 was not saved: the disk is full"):
            checkpoints.wait()
    assert not (tmp_path / "2").exists()
    assert load_trained(str(tmp_path), {"w": small(0)["trained"]["w"]})["w"][0] == 1


KILLED = textwrap.dedent("""
    import sys
    import jax
    from llama_cpt.checkpoint.checkpoint import CheckpointManager
    import numpy as np

    with CheckpointManager(sys.argv[1], keep=2) as checkpoints:
        step = (checkpoints.latest_verified() or 0) + 1
        while True:
            state = {"trained": {f"w{i}": np.full((2000 + i, 500), step * 1.0, np.float32)
                                 for i in range(4)}}
            checkpoints.save(step, jax.device_put(state), {"step": step})
            print(step, flush=True)
            step += 1
""")


@pytest.mark.slow
def test_kill_at_any_moment_keeps_committed_steps(tmp_path):
    """After SIGKILL at a random moment, the newest committed step is restored."""
    rng = np.random.default_rng(0)
    newest = 0
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        # Saving step n + 1 begins only when step n is committed.
        started = 0
        assert child.stdout is not None
        for _ in range(rng.integers(1, 4)):
            started = int(child.stdout.readline())
        try:
            child.wait(timeout=float(rng.uniform(0, 0.12)))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with CheckpointManager(str(tmp_path), keep=2) as checkpoints:
            step = checkpoints.latest_verified()
            assert (step or 0) >= max(newest, started - 1)
            if step is None:
                continue
            shapes = {f"w{i}": jnp.zeros((2000 + i, 500), jnp.float32) for i in range(4)}
            restored = checkpoints.restore_trained(step, shapes)
            assert checkpoints.metadata(step) == {"step": step}
        assert all((np.asarray(w) == step).all() for w in restored.values())
        newest = step
    assert newest > 3
