"""A run of two processes, of which one is lost, stopped, or cannot write: nothing saved is lost.

On a disk, and in a bucket.
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
    run_to_end,
    running,
    steps_told,
    train,
)
from tests.runs import learnt
from tests.storage_server import storage

STEPS = 12
KILLS = int(os.environ.get("LLAMA_CPT_KILLS", "2"))
"""How often a process is killed at a random moment."""
LONGEST_START = 15.0
SLOW_SEAL = """
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
FIRST_CANNOT_SEAL_STEP_2 = """
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
    """What two processes learn that nothing happens to."""
    config = many(tmp_path_factory.mktemp("whole") / "run", num_steps=STEPS)
    run_to_end(config, 2)
    return learnt(Path(config.output))


def kill_one(launched: Launched, process: int, config: TrainConfig) -> None:
    """The other ends by itself, within a minute, as one that is to be started again, or done."""
    launched.processes[process].kill()
    statuses = launched.ended(60)
    assert statuses[process] == -signal.SIGKILL
    done = sealed(config, STEPS) and statuses[1 - process] == 0
    assert done or statuses[1 - process] == -signal.SIGABRT, launched.log()


def sealed(config: TrainConfig, step: int) -> bool:
    folder = Path(config.output) / "checkpoints"
    return len(list(folder.glob(f"{step}.manifest-*-of-00002.json"))) == 2


def moment(config: TrainConfig, draw: random.Random) -> dict[str, Callable[[], bool]]:
    """Whether it has come, by its name; seconds and steps are counted from now."""
    folder = Path(config.output) / "checkpoints"
    at = time.monotonic() + draw.uniform(0.0, LONGEST_START)
    told = steps_told(config) + draw.randrange(1, 4)
    begun, seals = set(folder.glob("*")), set(folder.glob("*.manifest-*"))
    return {
        "meeting or compiling": lambda: time.monotonic() > at,
        "stepping": lambda: steps_told(config) >= told,
        "saving": lambda: not set(folder.glob("*")) <= begun,
        "sealing": lambda: not set(folder.glob("*.manifest-*")) <= seals,
    }


def halve_a_file(folder: Path) -> None:
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_a_run_that_much_happens_to(many, whole, tmp_path):
    config = many(tmp_path / "run", num_steps=STEPS)
    saved = Path(config.output) / "checkpoints"

    def started(program: str = "") -> Launched:
        return train(config, 2, program)

    kill_one(running(started, lambda: sealed(config, 2)), 1, config)

    log = tmp_path / "log-1"

    def started_slowly() -> Launched:
        log.unlink()
        return started(SLOW_STEPS + SLOW_SEAL)

    stopped = running(started_slowly, lambda: "sealing slowly" in log.read_text())
    stopped.processes[1].send_signal(signal.SIGTERM)
    assert stopped.ended() == [75, 75], stopped.log()
    newest = max(int(path.name) for path in saved.iterdir() if path.name.isdigit())
    assert newest >= 4 and sealed(config, newest)

    halve_a_file(saved / str(newest))
    last = run_to_end(config, 2, TENTH_WRITE_FAILS)
    assert f"checkpoint {newest} is damaged" in last.log()
    assert "falling back to the checkpoint of step" in last.log()
    assert learnt(tmp_path / "run") == whole


@pytest.mark.slow
def test_a_full_disk_on_one_host_ends_all_with_the_reason(many, tmp_path):
    config = many(tmp_path / "run")
    launched = ended(lambda: train(config, 2, FULL_ON_THE_SECOND))
    assert launched.ended() == [USER_ERROR, USER_ERROR], launched.log()
    assert all("the disk is full" in log.read_text() for log in launched.logs)
    assert "Traceback" not in launched.log()


@pytest.mark.slow
def test_a_host_that_cannot_seal_takes_nobody_along(many, tmp_path):
    """What the others still read is not removed under them."""
    config = many(tmp_path / "run")
    launched = ended(lambda: train(config, 2, FIRST_CANNOT_SEAL_STEP_2))
    assert launched.ended() == [0, 0], launched.log()
    assert "Input/output error" in launched.log() and "is saved instead" in launched.log()
    assert not (Path(config.output) / "checkpoints" / "2").exists() and sealed(config, 6)


@pytest.mark.slow
def test_an_output_that_is_not_shared(many, tmp_path):
    config, path = replace(many(tmp_path / "run"), output="run"), tmp_path / "config.json"
    save_config(config, path)
    program = EACH_IN_A_FOLDER_OF_ITS_OWN.format(place=tmp_path)
    command = ["llama_cpt.train", str(path)]
    launched = ended(lambda: launch(command, tmp_path, 2, program))
    assert launched.ended() == [USER_ERROR, USER_ERROR], launched.log()
    assert "error: output=run: not the same place on process 1 (" in launched.log()
    assert not list((tmp_path / "0" / "run").iterdir())


@pytest.mark.slow
def test_sigterm_while_the_first_prepares(many, tmp_path):
    """To one that waits for it."""
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
def test_a_run_in_a_bucket(many, whole, tmp_path):
    """One is killed; started again, with every tenth answer of the storage service a 503."""
    keep_one = CheckpointConfig(every_steps=2, keep=1)
    config = many("gs://bucket/run", num_steps=STEPS, checkpoint=keep_one)
    save_config(config, tmp_path / "config.json")
    (tmp_path / "empty").mkdir()
    with storage(tmp_path / "empty") as server:

        def sealed_there(step: int) -> bool:
            prefix = f"run/checkpoints/{step}.manifest-0000"
            parts = [f"{prefix}{part}-of-00002.json" for part in range(2)]
            return all(part in server.objects for part in parts)

        def started() -> Launched:
            arguments = ["llama_cpt.train", str(tmp_path / "config.json")]
            return launch(arguments, tmp_path, 2)

        first = running(started, lambda: sealed_there(2))
        first.processes[1].kill()
        first.ended(60)

        requests = itertools.count(1)
        server.fails = lambda method: next(requests) % 10 == 0
        last = ended(started)
        assert last.ended() == [0, 0], last.log()
        assert next(requests) > 200
    assert "resuming after step" in last.log(), last.log()
    assert sealed_there(STEPS) and not sealed_there(STEPS - 2)
    (tmp_path / "metrics.jsonl").write_bytes(server.objects["run/metrics.jsonl"])
    assert learnt(tmp_path) == whole


@pytest.mark.slow
def test_one_of_two_is_killed_at_random_moments(many, whole, tmp_path):
    draw, kills, unprovoked = random.Random(0), 0, 0
    names = itertools.cycle(["saving", "sealing", "meeting or compiling", "stepping"])
    for number in itertools.count():
        config = many(tmp_path / str(number) / "run", num_steps=STEPS)
        while kills < KILLS:
            launched = train(config, 2)
            has_come = moment(config, draw)[name := next(names)]
            if not launched.reach(has_come):
                statuses = set(launched.ended())
                assert statuses <= RESTARTS or statuses == {0}, launched.log()
                if statuses == {0}:
                    break
                # Gloo gives a busy machine 30 seconds.
                unprovoked += 1
                assert unprovoked < 4, launched.log()
                continue
            kill_one(launched, victim := draw.randrange(2), config)
            kills += 1
            print(f"kill {kills}, of process {victim}, {name}: {steps_told(config)} lines told")
        run_to_end(config, 2)
        assert learnt(Path(config.output)) == whole
        if kills == KILLS:
            return
