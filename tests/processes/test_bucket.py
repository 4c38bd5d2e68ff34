"""Two processes that train into a bucket: a kill, and a storage service that often fails."""

import itertools
from pathlib import Path

import pytest

from llama_cpt.config import TrainConfig
from llama_cpt.config_file import save
from tests.processes.launched import RESTARTS, Launched, launch, run_to_end
from tests.storage_server import Server, storage
from tests.training.runs import learnt

STEPS = 8


def started(config: TrainConfig, folder: Path, cache: Path) -> Launched:
    """``train`` as two processes, whose logs lie in ``folder``."""
    save(config, folder / "config.json")
    return launch(["llama_cpt.train", str(folder / "config.json")], folder, 2, cache)


def sealed(server: Server, step: int) -> bool:
    prefix = f"run/checkpoints/{step}.manifest-"
    return sum(name.startswith(prefix) for name in list(server.objects)) == 2


@pytest.mark.slow
def test_killed_and_failed_by_the_bucket(many, tmp_path, compilation_cache):
    whole = many(tmp_path / "whole" / "run", num_steps=STEPS)
    run_to_end(whole, 2, compilation_cache)
    empty, told = tmp_path / "empty", tmp_path / "told"
    for folder in (empty, told):
        folder.mkdir()
    with storage(empty) as server:
        config = many("gs://bucket/run", num_steps=STEPS)
        first = started(config, told, compilation_cache)
        first.wait_until(lambda: sealed(server, 2))
        first.processes[1].kill()
        first.ended(60)

        requests = itertools.count(1)
        server.fails = lambda method: next(requests) % 10 == 0
        for _ in range(4):
            statuses = set(started(config, told, compilation_cache).ended())
            if statuses == {0}:
                break
            assert statuses <= RESTARTS, (told / "log-0").read_text()
        assert next(requests) > 100
    log = (told / "log-0").read_text()
    assert "resuming after step" in log, log
    assert sealed(server, STEPS) and not sealed(server, STEPS - 2)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(server.objects["run/metrics.jsonl"])
    assert learnt(tmp_path) == learnt(Path(whole.output))
