"""A sweep runs every trial once with one compiled step, even if some trials fail."""

import csv
from dataclasses import replace
import json
import logging
import os
from pathlib import Path
import threading
import time
from typing import Any

from etils import epath
import jax
import numpy as np
import pytest

from llama_cpt.config.schema import EvaluationConfig, OptimizerConfig
from llama_cpt.config.sweep import AxisConfig, SweepConfig
from llama_cpt.data.prepare.corpora import open_heldout, prepare
from llama_cpt.model.flops import model_flops_per_token
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.sweeps import leases, runner
from llama_cpt.sweeps.cost import chip_hours, heldout_cost, trial_flops
from llama_cpt.sweeps.results import COLUMNS, TrialStatus, read_status, write_status
from llama_cpt.sweeps.runner import SharedWork, run_sweep
from llama_cpt.sweeps.trials import make_chains, smallest_trial_tokens
from llama_cpt.training import attempt, trainer
from llama_cpt.training.evaluation_plan import plan_evaluations
from llama_cpt.training.run import build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit
from tests.runs import learnt

RATES = "optimizer.peak_learning_rate"


@pytest.fixture
def sweep(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "make_mesh", one_device)
    axes = (AxisConfig("data.almr", (0.25, 0.5)), AxisConfig(RATES, (1e-3, 1e-2)))
    return SweepConfig(str(tmp_path / "sweep"), make_config(tmp_path / "unused"), "en+zh", axes)


def one_device(config):
    return make_mesh(config, jax.devices()[:1])


def trials_of(sweep):
    return [trial for chain in make_chains(sweep) for trial in chain]


def status_of(trial) -> TrialStatus:
    status = read_status(trial)
    assert status is not None
    return status


def rows_of(sweep):
    with open(f"{sweep.output}/results.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def steps_counted(monkeypatch):
    """Return a list to which every training step appends (peak learning rate, step)."""
    counted, real = [], attempt.learning_rate

    def count(optimizer, step, *rest):
        counted.append((optimizer.peak_learning_rate, step))
        return real(optimizer, step, *rest)

    monkeypatch.setattr(attempt, "learning_rate", count)
    return counted


def test_cost_of_evaluation_is_the_sum_over_trials(sweep, tmp_path):
    unknown = replace(sweep.train.data, prepared=str(tmp_path / "prepared"))
    train = replace(sweep.train, data=unknown, evaluation=EvaluationConfig())
    automatic = replace(sweep, train=train)
    assert "at most 5% of the tokens (" in heldout_cost(automatic, trials_of(automatic))
    prepare(sweep.train.data)
    trials = trials_of(sweep)
    (plan,) = {plan_evaluations(trial.config, open_heldout(trial.config.data)) for trial in trials}
    # Each of the four trials has 8 steps of 128 tokens, and is evaluated at 0, 1, 2, 4, 5 and 8.
    assert f"at most 24 times, {24 * plan.tokens:,} tokens, " in heldout_cost(sweep, trials)
    assert f" {24 * plan.tokens / 4096:.1%} of the tokens above" in heldout_cost(sweep, trials)
    flops = 24 * plan.tokens * model_flops_per_token(sweep.train.model, 32) / 3
    hours = chip_hours(sweep, trials) * flops / sum(map(trial_flops, trials))
    assert heldout_cost(sweep, trials).endswith(f", {hours:,.3g} chip-hours")


@pytest.mark.slow
def test_trials_equal_separate_runs_on_one_compilation(sweep, monkeypatch):
    made = []
    monkeypatch.setattr(runner, "SharedWork", lambda: made.append(SharedWork()) or made[0])
    assert run_sweep(sweep) is Outcome.FINISHED
    (program,) = made[0].programs.values()
    step: Any = program.step
    assert step._cache_size() == 1
    first, *_, last = trials_of(sweep)
    for trial in (first, last):  # They differ in both axes.
        alone = replace(trial.config, output=f"{trial.config.output}_alone")
        fit(build_run(alone, program.mesh))
        assert learnt(Path(trial.config.output)) == learnt(Path(alone.output))
    rows = rows_of(sweep)
    assert list(rows[0]) == COLUMNS
    assert len(rows) == 4 * 2 * len({row["step"] for row in rows})
    metrics = learnt(Path(last.config.output))[-1]
    assert float(rows[-1]["bits_per_byte"]) == metrics["eval/en/bits_per_byte"]
    assert len({row["base_loss"] for row in rows if row["corpus"] == "zh"}) == 1


@pytest.mark.slow
def test_finished_trials_are_not_run_again(sweep, monkeypatch):
    run_sweep(sweep)
    counted = steps_counted(monkeypatch)
    wider = replace(sweep, axes=(sweep.axes[0], AxisConfig(RATES, (1e-3, 1e-2, 3e-3))))
    run_sweep(wider)
    assert {rate for rate, _ in counted} == {3e-3} and len(counted) == 2 * 8
    assert {status_of(trial).schedule_version for trial in trials_of(wider)} == {2}
    assert len({row["run"] for row in rows_of(wider)}) == 6


def test_extended_sweep_keeps_its_held_out_sample(sweep):
    first = runner._stored_limit(sweep, trials_of(sweep))
    extended = replace(sweep, axes=(*sweep.axes, AxisConfig("num_steps", (3, 8))))
    assert smallest_trial_tokens(trials_of(extended)) < first
    assert runner._stored_limit(extended, trials_of(extended)) == first
    Path(sweep.output, runner.SAMPLE_FILE).write_text('{"limit_tokens": "many"}')
    with pytest.raises(UserError, match="limit_tokens must be an integer above 0; restore"):
        runner._stored_limit(sweep, trials_of(sweep))


def test_trials_of_an_earlier_schedule_are_reported(sweep, caplog):
    """Trials of version 0.1 have no version of the schedule in their status."""
    first, *others = trials = trials_of(sweep)
    write_status(first, TrialStatus("done", schedule_version=1))
    runner._warn_of_earlier_schedule(sweep, trials)
    assert "1 of 4 trials were trained by an earlier version, in which the cosine" in caplog.text
    caplog.clear()
    for trial in others:
        write_status(trial, TrialStatus("done"))
    runner._warn_of_earlier_schedule(sweep, trials)
    for trial in trials:
        write_status(trial, TrialStatus("done", schedule_version=2))
    runner._warn_of_earlier_schedule(sweep, trials)
    assert not caplog.records


def test_trials_of_another_config_are_rejected(sweep):
    sweep = replace(sweep, axes=(AxisConfig(RATES, (1e-3,)),))
    run_sweep(sweep)
    for change, message in (
        ({"num_steps": 9}, "num_steps was 8, is 9"),
        ({"num_steps": 7}, "num_steps=7, but 8 steps are done"),
        ({"optimizer": OptimizerConfig(1.0, warmup_steps=3)}, "optimizer.warmup_steps was 2, is 3"),
    ):
        changed = replace(sweep, train=replace(sweep.train, **change))
        with pytest.raises(UserError, match=f"has ended, but not as this sweep would.*{message}"):
            run_sweep(changed)


@pytest.mark.slow
def test_stopped_sweep_resumes_within_a_trial(sweep, monkeypatch):
    real = runner.fit

    def stopped(run, **options):
        counted.clear()
        monkeypatch.setattr(runner, "fit", real)
        signals = trainer.StopSignals.__enter__

        def enter(self):
            signals(self)
            os.kill(os.getpid(), 15)
            return self

        with monkeypatch.context() as patch:
            patch.setattr(trainer.StopSignals, "__enter__", enter)
            return real(run, **options)

    counted = steps_counted(monkeypatch)
    monkeypatch.setattr(runner, "fit", stopped)
    assert run_sweep(sweep) is Outcome.PREEMPTED
    assert run_sweep(sweep) is Outcome.FINISHED
    assert len(counted) == 4 * 8


def test_diverged_trial_is_recorded_and_others_run(sweep, monkeypatch, caplog):
    wild = replace(sweep, axes=(sweep.axes[0], AxisConfig(RATES, (1e-3, 1e30))))
    with caplog.at_level(logging.INFO, "llama_cpt"):
        assert run_sweep(wild) is Outcome.FINISHED
    statuses = [status_of(trial) for trial in trials_of(wild)]
    assert [status.status for status in statuses] == ["done", "diverged"] * 2
    assert "diverged: " in caplog.text
    last = {row["run"]: row for row in rows_of(wild)}
    assert [row["loss"] == "" for row in last.values()] == [False, True] * 2
    counted = steps_counted(monkeypatch)
    run_sweep(wild)
    assert not counted


@pytest.mark.slow
def test_failed_trial_is_run_again_by_the_next_call(sweep, monkeypatch):
    def out_of_memory(run, **options):
        if "0.25" in run.config.output:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return fit(run, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "fit", out_of_memory)
        assert run_sweep(sweep) is Outcome.FINISHED
    statuses = [status_of(trial) for trial in trials_of(sweep)]
    assert [status.status for status in statuses] == ["failed", "failed", "done", "done"]
    assert "RESOURCE_EXHAUSTED" in statuses[0].reason
    assert (
        "RESOURCE_EXHAUSTED"
        in (epath.Path(trials_of(sweep)[0].config.output) / "log.txt").read_text()
    )
    run_sweep(sweep)
    assert {status_of(trial).status for trial in trials_of(sweep)} == {"done"}


def test_config_mistake_ends_the_sweep_before_a_step(sweep):
    data = replace(sweep.train.data, tokenizer="/nowhere/tokenizer.model")
    with pytest.raises(UserError, match="/nowhere/tokenizer.model"):
        run_sweep(replace(sweep, train=replace(sweep.train, data=data)))
    assert not any(read_status(trial) for trial in trials_of(sweep))


@pytest.mark.slow
def test_larger_budget_continues_the_stable_phase(sweep, monkeypatch):
    wsd = OptimizerConfig(1e-2, schedule="wsd", warmup_steps=2, decay_steps=1)
    train = replace(
        sweep.train, optimizer=wsd, checkpoint=replace(sweep.train.checkpoint, every_steps=2)
    )
    tokens = 4 * 32
    sweep = replace(
        sweep, train=train, axes=(sweep.axes[0],), token_budgets=(8 * tokens, 16 * tokens)
    )
    counted = steps_counted(monkeypatch)
    assert run_sweep(sweep) is Outcome.FINISHED
    assert [step for _, step in counted] == [*range(8), *range(6, 16)] * 2
    second = trials_of(sweep)[1]
    alone = replace(second.config, output=f"{second.config.output}_alone")
    run = build_run(alone, one_device(alone.mesh))
    fit(run)
    assert learnt(Path(alone.output))[-3:] == learnt(Path(second.config.output))[-3:]
    folders = [epath.Path(trial.config.output) / "checkpoints" for trial in trials_of(sweep)]
    assert not any(folder.exists() for folder in folders)
    later = [row for row in rows_of(sweep) if row["run"].endswith(f"/{second.name}")]
    assert {row["base_loss"] for row in later} != {""}


@pytest.mark.slow
def test_worker_takes_over_an_expired_lease(sweep, monkeypatch):
    monkeypatch.setattr(runner, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 1.0)
    lost = make_chains(sweep)[0][0]
    lease = epath.Path(sweep.output) / "claims" / f"{lost.name}.json"
    lease.parent.mkdir(parents=True)
    lease.write_text(json.dumps({"worker": "worker 1/2 (gone)", "time": time.time()}))
    start = time.time()
    assert run_sweep(sweep, 2, 2) is Outcome.FINISHED
    assert time.time() - start > 1.0
    assert {status_of(trial).status for trial in trials_of(sweep)} == {"done"}
    assert not list(lease.parent.iterdir())


def test_only_one_of_many_workers_gets_a_lease(tmp_path):
    file, order = epath.Path(tmp_path) / "lease.json", []
    ready = threading.Barrier(6)

    def work(number):
        ready.wait()
        with leases.hold_lease(file, f"worker {number}") as mine:
            if mine:
                order.append(number)
                time.sleep(0.3)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(order) == 1 and np.isfinite(order[0])
    assert not file.exists()
