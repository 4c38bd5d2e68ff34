"""Tests that several processes train on the same rows with the same losses as one process."""

import json
from pathlib import Path
import signal

import pytest

from llama_cpt.config.schema import MeshConfig, TrainConfig
from tests.processes.launched import (
    DEVICES,
    SLOW_STEPS,
    Launched,
    lines_written,
    run_to_end,
    running,
    train,
)
from tests.runs import learnt

RECORDS_ROWS = """
import json, os
from llama_cpt.data import loader
real = loader.read_batch
def read_batch(mixture, corpora, row_numbers):
    with open(os.environ["ROWS"] + os.environ.get("JAX_PROCESS_ID", "0"), "a") as file:
        file.write(json.dumps(row_numbers.tolist()) + "\\n")
    return real(mixture, corpora, row_numbers)
loader.read_batch = read_batch
"""


@pytest.fixture(scope="session")
def alone(many, tmp_path_factory) -> list[dict]:
    """The metrics of a run with a single process."""
    config = many(tmp_path_factory.mktemp("alone") / "run")
    run_to_end(config, 1)
    return learnt(Path(config.output))


def assert_close(ours: list[dict], theirs: list[dict]) -> None:
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-5)


def rows_read(path: str, steps: int) -> list[int]:
    """Return the sorted row numbers of the first ``steps`` batches."""
    lines = [json.loads(line) for line in {*Path(path).read_text().splitlines()}]
    return [row for line in sorted(lines)[:steps] for part in line for row in part]


@pytest.mark.slow
def test_rows_and_losses_equal_those_of_one_process(alone, many, tmp_path, monkeypatch):
    """Two processes; ``test_run_resumes_with_other_process_counts`` covers four."""
    config = many(tmp_path / "run")
    monkeypatch.setenv("ROWS", f"{tmp_path}/rows-")
    # Compiled with all optimizations, as for users.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    launched = run_to_end(config, 2, RECORDS_ROWS)
    assert_close(learnt(tmp_path / "run"), alone)
    rows_by_process = [rows_read(f"{tmp_path}/rows-{process}", 6) for process in range(2)]
    assert all(len(rows) == 24 for rows in rows_by_process)
    assert sorted(row for rows in rows_by_process for row in rows) == list(range(48))
    first, *others = [log.read_text() for log in launched.logs]
    assert "step      6/6" in first and "goodput" in first
    assert not any("step " in log for log in others), others


@pytest.mark.proof  # In CI: tests/processes/test_shared_work.py.
def test_rows_shared_by_processes_equal_one_process(alone, many, tmp_path, monkeypatch):
    """Both processes hold and read every row."""
    config = many(tmp_path / "run", mesh=MeshConfig(replica=1, fsdp=1, context=DEVICES, tensor=1))
    monkeypatch.setenv("ROWS", f"{tmp_path}/rows-")
    run_to_end(config, 2, RECORDS_ROWS)
    assert_close(learnt(tmp_path / "run"), alone)
    for process in range(2):
        assert sorted(rows_read(f"{tmp_path}/rows-{process}", 6)) == list(range(48))


def stop_after_new_metrics(config: TrainConfig, count: int, process: int) -> None:
    """Send SIGTERM to one process after new metrics; check that all processes save and exit with
    75."""
    lines = 0

    def start() -> Launched:
        nonlocal lines
        lines = lines_written(config)
        return train(config, count, SLOW_STEPS)

    launched = running(start, lambda: lines_written(config) > lines)
    launched.processes[process].send_signal(signal.SIGTERM)
    assert set(launched.ended()) == {75}, launched.log()


@pytest.mark.slow
def test_run_resumes_with_other_process_counts(alone, many, tmp_path):
    """Two processes stop, four stop later, and one ends the run: more and fewer processes."""
    config = many(tmp_path / "run", num_steps=6)
    stop_after_new_metrics(config, 2, 0)
    stop_after_new_metrics(config, 4, 3)
    last = run_to_end(config, 1)
    assert last.log().count("resuming after step") >= 2
    assert_close(learnt(tmp_path / "run"), alone)
