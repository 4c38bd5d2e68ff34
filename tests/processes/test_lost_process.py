"""Tests of two real processes, one of which is lost or stopped: no checkpoint is lost.

The tests cover a local folder and a bucket. Errors of one process that need no real processes are
in ``test_shared_checkpoints.py`` and ``test_communication.py``.
"""

from collections.abc import Callable
import itertools
import os
from pathlib import Path
import random
import signal
import time

import pytest

from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import CheckpointConfig, TrainConfig
from tests.processes.launched import (
    RESTARTS,
    SLOW_STEPS,
    Launched,
    ended,
    launch,
    lines_written,
    run_to_end,
    running,
    train,
)
from tests.runs import learnt
from tests.storage_server import storage

STEPS = 12
KILLS = int(os.environ.get("LLAMA_CPT_KILLS", "2"))
"""Number of kills of a process at random moments."""
LONGEST_START = 15.0
SLOW_COMMIT = """
import time
from llama_cpt.checkpoint import manifest
real = manifest.commit
def commit(*arguments):
    print("sealing slowly", flush=True)
    time.sleep(3)
    real(*arguments)
manifest.commit = commit
"""
TENTH_WRITE_FAILS = """
import errno, itertools
from llama_cpt.runtime import retry
from llama_cpt.checkpoint import manifest
retry.RETRY_DELAYS = 0.01, 0.01, 0.01
real, written = manifest._sync, itertools.count(1)
def sync(path):
    if next(written) % 10 == 0:
        raise OSError(errno.EIO, "Input/output error")
    real(path)
manifest._sync = sync
"""


@pytest.fixture(scope="session")
def whole(many, tmp_path_factory) -> list[dict]:
    """The metrics of a run of two processes without failures."""
    config = many(tmp_path_factory.mktemp("whole") / "run", num_steps=STEPS)
    run_to_end(config, 2)
    return learnt(Path(config.output))


def kill_one(launched: Launched, process: int, config: TrainConfig) -> None:
    """Kill one process and check that the other exits within a minute with 0 or a restart
    status."""
    launched.processes[process].kill()
    statuses = launched.ended(60)
    assert statuses[process] == -signal.SIGKILL
    done = committed(config, STEPS) and statuses[1 - process] == 0
    assert done or statuses[1 - process] == -signal.SIGABRT, launched.log()


def committed(config: TrainConfig, step: int) -> bool:
    folder = Path(config.output) / "checkpoints"
    return len(list(folder.glob(f"{step}.manifest-*-of-00002.json"))) == 2


def moment(config: TrainConfig, draw: random.Random) -> dict[str, Callable[[], bool]]:
    """Return functions by name that return whether a moment has come, counted from now."""
    folder = Path(config.output) / "checkpoints"
    at = time.monotonic() + draw.uniform(0.0, LONGEST_START)
    lines = lines_written(config) + draw.randrange(1, 4)
    folders, manifests = set(folder.glob("*")), set(folder.glob("*.manifest-*"))
    return {
        "meeting or compiling": lambda: time.monotonic() > at,
        "stepping": lambda: lines_written(config) >= lines,
        "saving": lambda: not set(folder.glob("*")) <= folders,
        "sealing": lambda: not set(folder.glob("*.manifest-*")) <= manifests,
    }


def halve_a_file(folder: Path) -> None:
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_run_survives_kill_stop_damage_and_write_errors(many, whole, tmp_path):
    config = many(tmp_path / "run", num_steps=STEPS)
    saved = Path(config.output) / "checkpoints"

    def start(program: str = "") -> Launched:
        return train(config, 2, program)

    def sealing() -> bool:
        """Return whether a process has written its manifest of step 4."""
        return any(saved.glob("4.manifest-*"))

    kill_one(running(start, sealing), 1, config)
    assert committed(config, 2)

    log = tmp_path / "log-1"

    def start_slowly() -> Launched:
        log.unlink()
        return start(SLOW_STEPS + SLOW_COMMIT)

    stopped = running(start_slowly, lambda: "sealing slowly" in log.read_text())
    stopped.processes[1].send_signal(signal.SIGTERM)
    assert stopped.ended() == [75, 75], stopped.log()
    newest = max(int(path.name) for path in saved.iterdir() if path.name.isdigit())
    assert newest >= 4 and committed(config, newest)

    halve_a_file(saved / str(newest))
    last = run_to_end(config, 2, TENTH_WRITE_FAILS)
    assert f"checkpoint {newest} is damaged" in last.log()
    assert "falling back to the checkpoint of step" in last.log()
    assert learnt(tmp_path / "run") == whole


@pytest.mark.proof  # In CI: tests/training/test_bucket_run.py.
def test_run_in_a_bucket_survives_kill_and_storage_errors(many, whole, tmp_path):
    """One process is killed; after the restart every tenth response of the storage is a 503."""
    keep_one = CheckpointConfig(every_steps=2, keep=1)
    config = many("gs://bucket/run", num_steps=STEPS, checkpoint=keep_one)
    save_config(config, tmp_path / "config.json")
    (tmp_path / "empty").mkdir()
    with storage(tmp_path / "empty") as server:

        def committed_in_bucket(step: int) -> bool:
            prefix = f"run/checkpoints/{step}.manifest-0000"
            parts = [f"{prefix}{part}-of-00002.json" for part in range(2)]
            return all(part in server.objects for part in parts)

        def start() -> Launched:
            arguments = ["llama_cpt.train", str(tmp_path / "config.json")]
            return launch(arguments, tmp_path, 2)

        first = running(start, lambda: committed_in_bucket(2))
        first.processes[1].kill()
        first.ended(60)

        requests = itertools.count(1)
        server.fails = lambda method: next(requests) % 10 == 0
        last = ended(start)
        assert last.ended() == [0, 0], last.log()
        assert next(requests) > 200
    assert "resuming after step" in last.log(), last.log()
    assert committed_in_bucket(STEPS) and not committed_in_bucket(STEPS - 2)
    (tmp_path / "metrics.jsonl").write_bytes(server.objects["run/metrics.jsonl"])
    assert learnt(tmp_path) == whole


@pytest.mark.proof  # In CI: test_run_survives_kill_stop_damage_and_write_errors.
def test_run_survives_kills_at_random_moments(many, whole, tmp_path):
    draw, kills, unprovoked = random.Random(0), 0, 0
    names = itertools.cycle(["saving", "sealing", "meeting or compiling", "stepping"])
    for number in itertools.count():
        config = many(tmp_path / str(number) / "run", num_steps=STEPS)
        while kills < KILLS:
            launched = train(config, 2)
            reached = moment(config, draw)[name := next(names)]
            if not launched.reach(reached):
                statuses = set(launched.ended())
                assert statuses <= RESTARTS or statuses == {0}, launched.log()
                if statuses == {0}:
                    break
                # A busy machine exceeds Gloo's limit of 30 seconds now and then.
                unprovoked += 1
                assert unprovoked < 4, launched.log()
                continue
            kill_one(launched, victim := draw.randrange(2), config)
            kills += 1
            print(
                f"kill {kills}, of process {victim}, {name}: {lines_written(config)} lines written"
            )
        run_to_end(config, 2)
        assert learnt(Path(config.output)) == whole
        if kills == KILLS:
            return
