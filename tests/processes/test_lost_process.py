"""A run of two processes, one of which is lost, stopped or cannot write, loses nothing saved.

The tests cover a local folder and a bucket.
"""

from collections.abc import Callable
from dataclasses import replace
import itertools
import os
from pathlib import Path
import random
import signal
import time

import pytest

from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import CheckpointConfig, TrainConfig
from llama_cpt.runtime.errors import USER_ERROR
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
"""Number of times that a process is killed at a random moment."""
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
FIRST_CANNOT_COMMIT_STEP_2 = """
import errno, os, time
from llama_cpt.runtime import retry
from llama_cpt.checkpoint import manifest
retry.RETRY_DELAYS = 0.01, 0.01, 0.01
sync, commit_file = manifest._sync, manifest._commit_file
is_first = os.environ["JAX_PROCESS_ID"] == "0"
def failing(path):
    if is_first and "/2/" in str(path):
        raise OSError(errno.EIO, "Input/output error")
    sync(path)
def slow(path):
    time.sleep(0 if is_first else 2)
    return commit_file(path)
manifest._sync, manifest._commit_file = failing, slow
"""
FIRST_PREPARES_SLOWLY = """
import os, time
from llama_cpt.training import run
prepare = run.prepare
def slow(*arguments, **named):
    print("prepares slowly", flush=True)
    time.sleep(60 if os.environ["JAX_PROCESS_ID"] == "0" else 0)
    return prepare(*arguments, **named)
run.prepare = slow
"""
EACH_IN_A_FOLDER_OF_ITS_OWN = """
import os
os.makedirs("{place}/" + os.environ["JAX_PROCESS_ID"], exist_ok=True)
os.chdir("{place}/" + os.environ["JAX_PROCESS_ID"])
"""
FULL_ON_THE_SECOND = """
import errno, os
from llama_cpt.checkpoint import manifest
def sync(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
if os.environ["JAX_PROCESS_ID"] == "1":
    manifest._sync = sync
"""


@pytest.fixture(scope="session")
def whole(many, tmp_path_factory) -> list[dict]:
    """The metrics of an undisturbed run of two processes."""
    config = many(tmp_path_factory.mktemp("whole") / "run", num_steps=STEPS)
    run_to_end(config, 2)
    return learnt(Path(config.output))


def kill_one(launched: Launched, process: int, config: TrainConfig) -> None:
    """Kill one process; the other must end within a minute, done or to be restarted."""
    launched.processes[process].kill()
    statuses = launched.ended(60)
    assert statuses[process] == -signal.SIGKILL
    done = committed(config, STEPS) and statuses[1 - process] == 0
    assert done or statuses[1 - process] == -signal.SIGABRT, launched.log()


def committed(config: TrainConfig, step: int) -> bool:
    folder = Path(config.output) / "checkpoints"
    return len(list(folder.glob(f"{step}.manifest-*-of-00002.json"))) == 2


def moment(config: TrainConfig, draw: random.Random) -> dict[str, Callable[[], bool]]:
    """Return name -> whether that moment has come; seconds and steps count from now."""
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

    kill_one(running(start, lambda: committed(config, 2)), 1, config)

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


@pytest.mark.slow
def test_full_disk_on_one_host_ends_all_with_the_reason(many, tmp_path):
    config = many(tmp_path / "run")
    launched = ended(lambda: train(config, 2, FULL_ON_THE_SECOND))
    assert launched.ended() == [USER_ERROR, USER_ERROR], launched.log()
    assert all("the disk is full" in log.read_text() for log in launched.logs)
    assert "Traceback" not in launched.log()


@pytest.mark.slow
def test_host_that_cannot_commit_does_not_end_the_others(many, tmp_path):
    """Files that other processes still read are not removed."""
    config = many(tmp_path / "run")
    launched = ended(lambda: train(config, 2, FIRST_CANNOT_COMMIT_STEP_2))
    assert launched.ended() == [0, 0], launched.log()
    assert "Input/output error" in launched.log() and "is saved instead" in launched.log()
    assert not (Path(config.output) / "checkpoints" / "2").exists() and committed(config, 6)


@pytest.mark.slow
def test_output_folder_that_is_not_shared_is_rejected(many, tmp_path):
    config, path = replace(many(tmp_path / "run"), output="run"), tmp_path / "config.json"
    save_config(config, path)
    program = EACH_IN_A_FOLDER_OF_ITS_OWN.format(place=tmp_path)
    command = ["llama_cpt.train", str(path)]
    launched = ended(lambda: launch(command, tmp_path, 2, program))
    assert launched.ended() == [USER_ERROR, USER_ERROR], launched.log()
    assert "error: output=run is not the same folder on process 1 (" in launched.log()
    assert not list((tmp_path / "0" / "run").iterdir())


@pytest.mark.slow
def test_sigterm_while_the_first_process_prepares(many, tmp_path):
    """The signal goes to a process that waits for the first one."""
    config = many(tmp_path / "run")
    launched = running(
        lambda: train(config, 2, FIRST_PREPARES_SLOWLY),
        lambda: (
            (tmp_path / "log-0").exists() and "prepares slowly" in (tmp_path / "log-0").read_text()
        ),
    )
    time.sleep(1)
    launched.processes[1].send_signal(signal.SIGTERM)
    assert launched.ended(30) == [75, 75], launched.log()


@pytest.mark.slow
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


@pytest.mark.slow
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
