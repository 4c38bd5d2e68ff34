"""The last healthy checkpoint survives divergence, lost manifests and damage, in every command."""

from dataclasses import replace
import itertools
import json
from pathlib import Path
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from llama_cpt.checkpoint import manifest
from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.checkpoint.run_folder import save_weights
from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import CheckpointConfig, MeshConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.training import attempt
from llama_cpt.training.stop import Outcome
from llama_cpt.weights.source import open_source
from tests.checkpoint.test_checkpoint import make_model, make_state, save_small, small
from tests.runs import saved_steps, train, train_until


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory) -> Path:
    """The folder of a run with checkpoints of steps 3, 6 and 8."""
    output = tmp_path_factory.mktemp("finished") / "run"
    assert train(make_config(output)) is Outcome.FINISHED
    return output


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the folder ``finished``, which the test can damage, and its config."""
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    return output, replace(load_config(str(output / "config.json")), output=str(output))


def manifest_of(output: Path, step: int) -> Path:
    return output / f"checkpoints/{step}.manifest-00000-of-00001.json"


def spoil(monkeypatch, step: int, rate: float) -> None:
    """Set the learning rate of step number ``step``, counted from 1, to ``rate``."""
    real = attempt.learning_rate
    spoiled = lambda config, at, *rest: rate if at == step - 1 else real(config, at, *rest)
    monkeypatch.setattr(attempt, "learning_rate", spoiled)


@pytest.mark.parametrize("where", ["trained", "moments"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_state_is_never_committed(tmp_path, where, value):
    state = make_state(make_mesh(MeshConfig(1, 8, 1)))
    part = state.trained if where == "trained" else state.opt_state[0].mu
    part.layers.down[...] = part.layers.down[...].at[1, 2, 3].set(value)
    with CheckpointManager(str(tmp_path), keep=1) as checkpoints:
        checkpoints.save(1, make_state(make_mesh(MeshConfig(1, 8, 1))), {})
        with pytest.raises(DivergedError, match="step 2 was not saved: .*down contained NaN"):
            checkpoints.save(2, state, {})
        assert checkpoints.latest_verified() == 1
    assert not list(tmp_path.glob("2*"))


def test_save_weights_rejects_non_finite_weights(tmp_path):
    model = make_model()
    model.embedding[...] = model.embedding[...].at[0, 0].set(jnp.nan)
    with pytest.raises(UserError, match="contained NaN or infinity. Download or export"):
        save_weights(str(tmp_path), model, {})


@pytest.mark.parametrize("step", [6, 8])
def test_non_finite_update_before_a_save_keeps_the_last_checkpoint(
    step, make_config, tmp_path, monkeypatch
):
    """The loss of the updated weights is not known yet when the checkpoint is saved."""
    config = make_config(tmp_path / "run", checkpoint=CheckpointConfig(every_steps=3, keep=1))
    spoil(monkeypatch, step, float("inf"))
    before = 3 if step == 6 else 6
    message = rf"step {step} was not saved.*Lower optimizer.*checkpoint of step {before} is valid"
    with pytest.raises(DivergedError, match=message):
        train(replace(config, data=replace(config.data, heldout=())))
    assert saved_steps(tmp_path / "run") == [before]


def test_non_finite_update_before_a_preemption_keeps_the_last_checkpoint(
    make_config, tmp_path, monkeypatch
):
    config = make_config(tmp_path / "run")
    config = replace(config, data=replace(config.data, heldout=()))
    spoil(monkeypatch, 5, float("inf"))
    with pytest.raises(DivergedError, match="step 5 was not saved.*checkpoint of step 3 is valid"):
        train_until(config, 5, monkeypatch, signal.SIGTERM)
    assert saved_steps(tmp_path / "run") == [3]


@pytest.mark.parametrize("step", [4, 6])
def test_diverged_run_keeps_the_last_healthy_checkpoint(
    step, make_config, tmp_path, monkeypatch, caplog
):
    """Step ``step`` makes finite weights unhealthy; step 6 is saved before its loss is known."""
    config = make_config(tmp_path / "run", checkpoint=CheckpointConfig(every_steps=3, keep=1))
    with monkeypatch.context() as patch:
        spoil(patch, step, 1e4)
        assert train(config) is Outcome.FINISHED
    assert saved_steps(tmp_path / "run") == [3, 8]
    warned = [line for line in caplog.messages if "is kept in addition" in line]
    assert len(warned) == 1 and "the checkpoint of step 3" in warned[0]


def test_unhealthy_marks_outlast_a_restart(tmp_path):
    with CheckpointManager(str(tmp_path), keep=9) as checkpoints:
        for step, problem in ((1, ""), (2, "the loss is 99"), (3, "the loss is 99")):
            checkpoints.save(step, small(step), {})
            checkpoints.retention.judge(step, problem)
    with CheckpointManager(str(tmp_path), keep=1) as checkpoints:
        checkpoints.retention.judge(4, "the loss is 99")
        checkpoints.save(4, small(4), {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 4]


def test_healthy_run_keeps_the_configured_number(make_config, tmp_path):
    config = make_config(tmp_path / "run", checkpoint=CheckpointConfig(every_steps=3, keep=1))
    assert train(config) is Outcome.FINISHED
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        "8",
        "8.manifest-00000-of-00001.json",
    ]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_without_manifests_are_not_deleted(copied):
    output, config = copied
    for step in (3, 6, 8):
        manifest_of(output, step).unlink()
    before = contents(output / "checkpoints"), (output / "metrics.jsonl").read_bytes()
    for command in (lambda: train(config), lambda: open_source(str(output)).architecture):
        with pytest.raises(UserError, match=r"steps \[3, 6, 8\] exist, but their manifests"):
            command()
    with pytest.raises(UserError, match=r"steps \[3, 6, 8\] exist"):
        with CheckpointManager(str(output / "checkpoints")) as checkpoints:
            checkpoints.save(9, small(9), {})
    assert (contents(output / "checkpoints"), (output / "metrics.jsonl").read_bytes()) == before


def test_interrupted_first_save_can_be_repeated(tmp_path, monkeypatch):
    """A kill during the commit leaves such a folder, with and without the mark of this version."""
    commit = manifest.commit

    def copy_and_commit(checkpoint, *share):
        shutil.copytree(checkpoint.parent, tmp_path / "killed")
        commit(checkpoint, *share)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "commit", copy_and_commit)
        save_small(tmp_path / "whole", 1)
    assert (tmp_path / "killed/1/_METADATA").exists()
    older = tmp_path / "older"
    shutil.copytree(tmp_path / "killed", older)
    (older / "1.saving").unlink()
    note = older / "1/_CHECKPOINT_METADATA"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"commit_timestamp_nsecs": None}))
    for folder in ("killed", "older"):
        with CheckpointManager(str(tmp_path / folder)) as checkpoints:
            assert checkpoints.latest_verified() is None
            checkpoints.save(1, small(1), {})
            checkpoints.wait()
            assert checkpoints.latest_verified() == 1
        assert len(list((tmp_path / folder).iterdir())) == 2


def test_checkpoint_is_digested_once_until_it_changes(tmp_path, monkeypatch):
    save_small(tmp_path, 1, 2)
    real, calls = manifest.size_and_digest, itertools.count()
    monkeypatch.setattr(manifest, "size_and_digest", lambda path: (next(calls), real(path))[1])

    def newest() -> int | None:
        with CheckpointManager(str(tmp_path)) as checkpoints:
            return checkpoints.latest_verified()

    assert newest() == 2
    read = next(calls)
    assert read > 0 and newest() == 2 and next(calls) == read + 1
    change = tmp_path / "2/_METADATA"
    change.write_bytes(change.read_bytes().replace(b"w", b"v", 1))
    assert newest() == 1


@pytest.mark.parametrize("earlier_version", [False, True])
def test_checkpoint_under_another_step_is_damaged(earlier_version, copied, caplog):
    output, config = copied
    shutil.copytree(output / "checkpoints/6", output / "checkpoints/9")
    content = json.loads(manifest_of(output, 6).read_text())
    if earlier_version:
        del content["step"]
    manifest_of(output, 9).write_text(json.dumps(content))
    with CheckpointManager(str(output / "checkpoints")) as checkpoints:
        assert checkpoints.latest_verified() == 8
    message = "holds the state of step 6" if earlier_version else "its manifest belongs to step 6"
    assert message in caplog.text


def test_manifests_of_earlier_versions_are_read(copied):
    output, config = copied
    for step in (3, 6, 8):
        content = json.loads(manifest_of(output, step).read_text())
        del content["step"]
        manifest_of(output, step).write_text(json.dumps(content))
    assert train(config) is Outcome.FINISHED
    assert saved_steps(output) == [3, 6, 8]


def test_missing_newest_checkpoint_is_reported(copied, caplog):
    output, config = copied
    shutil.rmtree(output / "checkpoints/8")
    manifest_of(output, 8).unlink()
    assert train(config) is Outcome.FINISHED
    warned = caplog.text
    assert "the checkpoint of step 8 does not exist" in warned and "after step 6" in warned
    caplog.clear()
    assert train(config) is Outcome.FINISHED
    assert "does not exist" not in caplog.text
