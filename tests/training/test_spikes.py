"""A spike is logged, skipped or rolled back, and a resumed run repeats the decision."""

from collections.abc import Callable, Generator
import contextlib
from dataclasses import replace
import itertools
import json
import math
import os
from pathlib import Path
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.monitors import ForgettingConfig, SpikeConfig
from llama_cpt.config.schema import (
    CheckpointConfig,
    CorpusConfig,
    EvaluationConfig,
    OptimizerConfig,
    TrainConfig,
)
from llama_cpt.data.batch import TokenBatch
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.training import attempt
from llama_cpt.training.program import TrainProgram, compile_key
from llama_cpt.training.rollback import needed_checkpoints, verified_target
from llama_cpt.training.run import Run, build_run
from llama_cpt.training.spikes import RollbackRequest, SpikeMonitor
from llama_cpt.training.stop import Outcome
from llama_cpt.training.train_step import Limits
from llama_cpt.training.trainer import fit
from tests.runs import learnt

POISON = "ⵣ" * 11
POISON_STEP = 10
RATE = OptimizerConfig(peak_learning_rate=1e-4, schedule="constant")
Make = Callable[..., Run]


@pytest.fixture(scope="module")
def make_run(make_config, corpora, tmp_path_factory) -> Make:
    """A function ``make_run(output, **spikes)`` that returns a run of 16 steps.

    The run starts from a trained model. The batch of step 10 contains a document that consists of
    one repeated rare letter. Runs with the same compiled step share it.
    """
    folder = tmp_path_factory.mktemp("spikes")
    lines = (corpora / "en.jsonl").read_text().splitlines()
    # At this place, the mixture reads the document in step 10 and not in another step.
    lines.insert(72, json.dumps({"text": POISON}))
    (folder / "en.jsonl").write_text("\n".join(lines) + "\n")
    programs: dict[Any, TrainProgram] = {}

    def built(config: TrainConfig) -> Run:
        mesh, key = make_mesh(config.mesh, jax.devices()[:1]), compile_key(config)
        run = build_run(config, mesh, programs.get(key))
        programs[key] = run.program
        return run

    base = make_config(folder / "base", num_steps=100)
    base = replace(base, data=replace(base.data, heldout=()))
    assert fit(built(base)) is Outcome.FINISHED
    data = replace(
        base.data,
        prepared=str(folder / "prepared"),
        original=(CorpusConfig("en", str(folder / "en.jsonl")),),
    )

    def make(output: Path, **spikes) -> Run:
        given = {"loss_threshold": 8.0, "window": 8, "rollback_steps": 2}
        return built(
            replace(
                base,
                output=str(output),
                data=data,
                init_from=base.output,
                num_steps=16,
                optimizer=RATE,
                checkpoint=CheckpointConfig(every_steps=3, keep=1),
                spikes=SpikeConfig(**(given | spikes)),
            )
        )

    return make


def saved_monitor(output: Path) -> dict[str, Any]:
    """Return the monitor's values in the last checkpoint, without the descriptions of spikes."""
    with CheckpointManager(str(output / CHECKPOINTS_FOLDER), 9) as checkpoints:
        metadata = checkpoints.metadata(16)
    saved = metadata["spikes"]
    passed_over = sum(end - first for first, end in saved["skipped_rows"])
    assert metadata["rows_consumed"] == 16 * 4 + passed_over
    return {name: value for name, value in saved.items() if name != "records"}


@contextlib.contextmanager
def at_step_call(number: int, act: Callable[[], Any]) -> Generator[None]:
    """Context manager that calls ``act`` before step call ``number`` of a process, from 1."""
    real, calls = attempt.learning_rate, itertools.count(1)

    def rate(*arguments):
        if next(calls) == number:
            act()
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "learning_rate", rate)
        yield


def kill() -> None:
    raise InterruptedError("killed")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["rollback", "log", "skip"])
def test_killed_and_stopped_runs_repeat_the_decision(action, make_run, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(make_run(whole, action=action)) is Outcome.FINISHED
    (record,) = json.loads((whole / "spikes.json").read_text())
    assert (record["step"], record["action"]) == (POISON_STEP, action)
    assert record["loss"] > record["loss_limit"]
    row = record["rows"][0]
    assert (row["corpus"], row["file"].split("/")[-2]) == ("en", "en")
    assert row["loss"] > record["loss"] and row["text"].startswith("ⵣⵣⵣ")
    saved = saved_monitor(whole)
    assert saved["count"] == 1 and saved["actions"] == (action != "log")
    # The run returns from step 10 to step 6, so the rows of steps 7 to 10 are not used again.
    assert saved["skipped_rows"] == ([[6 * 4, 10 * 4]] if action == "rollback" else [])
    lines = {line["step"]: line for line in learnt(whole) if "train/loss" in line}
    assert list(lines) == list(range(1, 17))
    assert lines[16]["train/spikes"] == 1
    if action == "rollback":
        assert max(line["train/loss"] for line in lines.values()) < record["loss_limit"]
        epochs = float(make_run(whole).mixture.epochs((10 + 1) * 4)[1])
        assert lines[7]["mixture/en/epochs"] == epochs

    # Killed before the spike, and again after the decision and before the next checkpoint.
    for call in (8, 6):
        with at_step_call(call, kill), pytest.raises(InterruptedError):
            fit(make_run(broken, action=action))
    # The checkpoint of step 8 is recent enough for a rollback, but an uninterrupted run lacks it.
    stops = {"log": 1, "skip": 1, "rollback": 2}[action]
    with at_step_call(stops, terminate):
        assert fit(make_run(broken, action=action)) is Outcome.PREEMPTED
    assert fit(make_run(broken, action=action)) is Outcome.FINISHED
    assert learnt(broken) == learnt(whole)
    assert saved_monitor(broken) == saved


@pytest.mark.slow
@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        (
            {"spikes": SpikeConfig("rollback", window=8, rollback_steps=2, max_actions=2)},
            r"spike at step 1\d: .*, after spikes.max_actions=2 spikes with action rollback; .*"
            r" Lower optimizer.peak_learning_rate",
        ),
        (
            {"forgetting": ForgettingConfig("stop", limit=0.5)},
            r"forgetting: after step 15, .*: zh \+.*, en \+.*checkpoints/12\. .*"
            r"Lower optimizer.peak_learning_rate",
        ),
    ],
    ids=["spikes", "forgetting"],
)
def test_rate_ten_times_too_high_ends_and_the_right_rate_continues(
    monitor, message, make_run, make_config, tmp_path
):
    trained = make_run(tmp_path / "unused")
    right = replace(RATE, peak_learning_rate=0.02, warmup_steps=8)
    base = make_config(
        tmp_path / "whole",
        init_from=trained.config.init_from,
        num_steps=16,
        optimizer=right,
        checkpoint=CheckpointConfig(every_steps=3, keep=1),
        evaluation=EvaluationConfig(3, early_evaluations=False, documents=4, batch_size=2),
        **monitor,
    )
    assert compile_key(base) == compile_key(trained.config)

    def train(**fields) -> Outcome:
        run = build_run(replace(base, **fields), trained.program.mesh, trained.program)
        return fit(run, ["optimizer.peak_learning_rate"])

    assert train() is Outcome.FINISHED
    assert not (tmp_path / "whole" / "spikes.json").exists()
    broken = {"output": str(tmp_path / "broken")}
    assert train(**broken, num_steps=12) is Outcome.FINISHED
    too_high = {"optimizer": replace(right, peak_learning_rate=0.2)}
    ends = []
    for _ in range(2):
        with pytest.raises(UserError, match=message) as caught:
            train(**broken, **too_high)
        ends.append((str(caught.value), learnt(tmp_path / "broken")))
    assert ends[0] == ends[1]
    assert train(**broken) is Outcome.FINISHED
    assert learnt(tmp_path / "broken") == learnt(tmp_path / "whole")


def with_nan(run: Run, monkeypatch) -> Run:
    """Return ``run`` with NaN in the batch that starts with row 36 of the run."""
    real = Run.batches

    def batches(self, first_row):
        for batch in real(self, first_row):
            assert isinstance(batch, TokenBatch)
            bad = float("nan") if int(batch.row[0, 0, 0]) == 36 else 1.0
            yield replace(batch, loss_mask=batch.loss_mask * bad)

    monkeypatch.setattr(Run, "batches", batches)
    return run


def test_nan_is_rolled_back(make_run, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", action="rollback", loss_threshold=1e6)
    assert fit(with_nan(run, monkeypatch)) is Outcome.FINISHED
    (record,) = json.loads((tmp_path / "run" / "spikes.json").read_text())
    assert (record["step"], record["loss"]) == (10, None)
    by_step = {line["step"]: line for line in learnt(tmp_path / "run") if "train/loss" in line}
    losses = [by_step[step]["train/loss"] for step in range(1, 17)]
    assert all(map(math.isfinite, losses))


def test_nan_ends_a_run_that_only_logs():
    monitor = SpikeMonitor(SpikeConfig("log"), 4)
    with pytest.raises(DivergedError, match=r"grad_norm of step 10 is nan\."):
        monitor.observe(10, 1.0, math.nan)


def test_guarded_step_keeps_the_state_in_place(make_run, tmp_path):
    guarded, plain = make_run(tmp_path / "a", action="skip"), make_run(tmp_path / "b")
    with jax.set_mesh(plain.program.mesh), contextlib.closing(plain.batches(0)) as batches:
        batch, rate = next(batches), np.float32(1e-2)
        expected, metrics = plain.program.step(plain.start(), batch, rate)
        state = guarded.start()
        before = jax.tree.map(np.array, state)
        memory = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}
        loss, norm = np.asarray(metrics["loss"]), np.asarray(metrics["grad_norm"])
        for limits in (
            Limits(np.nextafter(loss, np.float32(0)), norm),
            Limits(loss, np.nextafter(norm, np.float32(0))),
        ):
            state, _ = guarded.program.step(state, batch, rate, limits)
            jax.tree.map(np.testing.assert_array_equal, state, before)
        bad, most = replace(batch, loss_mask=batch.loss_mask * jnp.nan), np.finfo(np.float32).max
        state, metrics = guarded.program.step(state, bad, rate, Limits(most, most))
        assert math.isnan(float(metrics["loss"]))
        jax.tree.map(np.testing.assert_array_equal, state, before)
        state, _ = guarded.program.step(state, batch, rate, Limits(loss, norm))
        jax.tree.map(np.testing.assert_array_equal, state, expected)
        assert memory == {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}


def test_limits_are_robust_z_scores_of_earlier_steps():
    monitor = SpikeMonitor(
        SpikeConfig("log", loss_threshold=7, grad_norm_threshold=9, window=20), 4
    )
    draws = np.random.default_rng(0).normal((3, 1), (0.2, 0.3), (30, 2)).astype(np.float32)
    for step, (loss, norm) in enumerate(draws.tolist(), 1):
        limits = monitor.limits(step)
        # Step 22 is the first step with 20 steps before its previous step.
        if step < 22:
            assert limits == Limits(np.finfo(np.float32).max, np.finfo(np.float32).max)
        else:
            recent = draws[step - 22 : step - 2].astype(np.float64)
            spread = stats.median_abs_deviation(recent, scale=float(stats.norm.ppf(0.75)))
            np.testing.assert_allclose(limits, np.median(recent, 0) + [7, 9] * spread, rtol=1e-4)
        monitor.observe(step, loss, norm)
    saved = json.loads(json.dumps(monitor.metadata()["spikes"]))
    assert SpikeMonitor(monitor.config, 4, saved).limits(31) == monitor.limits(31)


def test_equal_values_leave_room_for_noise():
    monitor = SpikeMonitor(SpikeConfig("log", window=4), 4)
    for step in range(1, 6):
        monitor.observe(step, 2.0, 1.0)
    assert monitor.limits(6) == pytest.approx((2.2, 2.0))


def test_too_many_spikes_end_the_run():
    monitor = SpikeMonitor(SpikeConfig("skip", max_actions=2), 4)
    for step in (1, 2):
        assert monitor.observe(step, math.inf, 1.0)
    with pytest.raises(
        DivergedError, match=r"spike at step 3: loss 1, gradient norm nan, .*max_actions=2.*Remove"
    ):
        monitor.observe(3, 1.0, math.nan)


def test_rollbacks_merge_the_rows_that_they_skip():
    monitor = SpikeMonitor(SpikeConfig("rollback"), 4)

    def roll_back(spike_step: int, saved: dict[str, Any], step: int) -> SpikeMonitor:
        with pytest.raises(RollbackRequest) as caught:
            monitor.observe(spike_step, math.nan, 1.0)
        return monitor.rolled_back(caught.value.spike, saved, step)

    monitor = roll_back(10, {}, 6)
    assert monitor.skipped_rows == [[24, 40]] and monitor.rows_before(6) == 40
    saved = monitor.metadata()
    monitor = roll_back(12, saved, 9)
    assert monitor.skipped_rows == [[24, 40], [52, 64]] and monitor.rows_before(9) == 64
    # A return to step 3 discards the earlier decisions with the steps after which they were made.
    monitor = roll_back(12, {}, 3)
    assert monitor.skipped_rows == [[12, 76]] and monitor.actions == monitor.count == 3


def test_rollback_keeps_the_checkpoints_that_it_needs(make_config, tmp_path):
    config = make_config(tmp_path, spikes=SpikeConfig("rollback", rollback_steps=5))
    # A spike at step 14 or later returns to step 9 or later. Step 11 was saved upon a signal.
    assert needed_checkpoints(config, [3, 6, 9, 11, 12, 13]) == [9, 12]
    assert needed_checkpoints(config, [3, 6]) == [3, 6]
    # Checkpoints of an earlier, shorter interval are needed until there are newer ones.
    longer = replace(config, checkpoint=CheckpointConfig(every_steps=30))
    assert needed_checkpoints(longer, [3, 6, 9, 12]) == [3, 6, 9, 12]


class Saved:
    """The checkpoints of a run with a checkpoint every ``every`` steps, some of them damaged."""

    def __init__(self, steps: list[int], every: int, damaged: tuple[int, ...] = ()) -> None:
        self.steps, self.is_verified = lambda: steps, lambda step: step not in damaged
        self.metadata = lambda step: {"config": {"checkpoint": {"every_steps": every}}}


@pytest.mark.parametrize(
    ("steps", "damaged", "target"),
    [
        # Step 8 was saved upon a signal.
        ([3, 6, 8, 9, 12], (), 9),
        ([3, 6, 8, 9, 12], (9,), 6),
        # Newer checkpoints must not be removed for a damaged one, or for the start of the run.
        ([9, 12], (9,), -1),
        ([12], (), -1),
    ],
)
def test_rollback_returns_to_a_verified_checkpoint(steps, damaged, target, make_config, tmp_path):
    """The interval is that with which the checkpoints were saved."""
    spikes = SpikeConfig("rollback", rollback_steps=5)
    for every in (3, 10):
        config = make_config(
            tmp_path, spikes=spikes, checkpoint=CheckpointConfig(every_steps=every)
        )
        checkpoints: Any = Saved(steps, 3, damaged)
        assert verified_target(config, checkpoints, 14, 0) == target
