"""One attempt of a run: the training loop from a state to the end, a signal or a rollback."""

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass
from functools import partial
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.run_folder import save_with_retries
from llama_cpt.config.fields import to_dict
from llama_cpt.data.batch import Batch
from llama_cpt.model.llama import Llama
from llama_cpt.runtime.distributed import is_primary, process_count
from llama_cpt.runtime.metrics import FILE, cut_back
from llama_cpt.runtime.wandb_run import WandbRun
from llama_cpt.training.cadence import is_checkpoint_step
from llama_cpt.training.evaluation import Evaluation, EvaluationStoppedError, evaluate
from llama_cpt.training.first_state import FirstState
from llama_cpt.training.forgetting import ForgettingAlarm
from llama_cpt.training.goodput import STEP, Goodput
from llama_cpt.training.optimizer import learning_rate
from llama_cpt.training.report import Reporter
from llama_cpt.training.rollback import needed_checkpoints
from llama_cpt.training.run import Run
from llama_cpt.training.spike_report import describe_spikes
from llama_cpt.training.spikes import METADATA, SpikeMonitor
from llama_cpt.training.stop import (
    SAVE_FAILED,
    Outcome,
    StopConsensus,
    StopSignals,
)
from llama_cpt.training.trace import Trace
from llama_cpt.training.train_step import TrainState
from llama_cpt.training.watchdog import Watchdog
from llama_cpt.weights.lora_base_check import NOTED, checksums

Probe = Callable[[Llama], dict[str, float]]
"""A function that measures a model and returns values by the name of the metric."""


@dataclass(frozen=True)
class Services:
    """The objects that all attempts of ``fit`` use to save, measure time, stop and trace."""

    checkpoints: CheckpointManager
    clock: Goodput
    signals: StopSignals
    consensus: StopConsensus
    watchdog: Watchdog
    trace: Trace
    probe: Probe | None
    wandb_run: WandbRun

    def poll(self) -> int:
        """Vote to stop, or to save again, and return the maximum of the votes of all processes."""
        return self.consensus.poll(self.signals.outcome.value or int(self.checkpoints.failed))


def run_attempt(
    start: FirstState,
    monitor: SpikeMonitor,
    services: Services,
    at_start: Evaluation | None,
) -> Outcome:
    """Train from ``start`` to the end or a stop signal, and return the outcome.

    Raises RollbackRequest if the run has to return to an earlier checkpoint.
    """
    run, state, first_step = start.run, start.state, start.step
    checkpoints, clock = services.checkpoints, services.clock
    alarm = ForgettingAlarm(run.config, run.heldout_samples, start.saved)
    checkpoints.retention.also_kept = [alarm.newest_within]
    if run.config.spikes.action == "rollback":
        checkpoints.retention.also_kept.append(partial(needed_checkpoints, run.config))
    if start.unevaluated and first_step and is_primary():
        # An earlier attempt can have written results that no checkpoint contains.
        metrics = epath.Path(run.config.output) / FILE
        cut_back(metrics, metrics, first_step, evaluated=False)
    with (
        Reporter(
            run, first_step, clock, checkpoints.retention, monitor, alarm, services.wandb_run
        ) as report,
        contextlib.closing(run.batches(monitor.rows_before(first_step))) as batches,
    ):
        attempt = Attempt(run, first_step, services, report)
        last, outcome = first_step, Outcome.FINISHED
        if run.heldout and start.unevaluated:
            known = None if first_step else at_start
            outcome = attempt.evaluate_and_report(state, first_step, known)
        if outcome is Outcome.FINISHED:
            state, last, outcome = attempt.train(state, batches)
        report.flush()
        if last > first_step:
            attempt.save(state, last, wait=True)
        # The process must not exit while a save is running in the background.
        with clock.measure("save"):
            checkpoints.wait()
    return outcome


@dataclass(frozen=True)
class Attempt:
    """Training from a state to the end, a stop signal or a rollback.

    The state is not a field, because each step donates the buffers of the state before it.
    """

    run: Run
    first_step: int
    """Number of steps done at the start."""
    services: Services
    report: Reporter

    def train(self, state: TrainState, batches: Iterator[Batch]) -> tuple[TrainState, int, Outcome]:
        """Train from ``state`` until all steps are done or any process receives a signal.

        Returns the state, the number of steps done and the outcome.
        """
        config = self.run.config
        self.report.clock.switch_to(STEP)
        for step in range(self.first_step, config.num_steps):
            vote = self.services.poll()
            if vote > SAVE_FAILED:
                return state, step, Outcome(vote)
            if vote == SAVE_FAILED:
                self.save(state, step)
                # Pending votes refer to the failed save, which has now been repeated.
                self.services.consensus.reset()
            with self.report.clock.measure("data"):
                batch = next(batches)
            state = self._train_step(state, batch, step)
            done = step + 1
            if done in self.run.evaluations.steps:
                outcome = self.evaluate_and_report(state, done)
                if outcome is not Outcome.FINISHED:
                    return state, done, outcome
            if is_checkpoint_step(config, done):
                self.save(state, done)
        # Several processes cannot agree on a signal that arrives during the last step, and all of
        # them must exit with the same status, so they ignore the signal. A single process reports
        # it.
        several = process_count() > 1
        outcome = Outcome.FINISHED if several else self.services.signals.outcome
        return state, config.num_steps, outcome

    def _train_step(self, state: TrainState, batch: Batch, step: int) -> TrainState:
        """Dispatch step number ``step``, counted from 0, and return the new state.

        Also reports the previous step, and starts or stops the profiler trace at its first or last
        step.
        """
        trace, done, config = self.services.trace, step + 1, self.run.config
        rate = learning_rate(config.optimizer, step, config.num_steps, self.run.schedule_version)
        if trace.begins_at(done):
            with self.report.pause("trace"):
                trace.begin()
        with self.report.clock.measure("compile" if step == self.first_step else STEP):
            with jax.profiler.StepTraceAnnotation("step", step_num=done):
                # The call returns when the step is dispatched. It donates the buffers of the old
                # state.
                state, metrics = self.run.program.step(
                    state, batch, np.float32(rate), *self.report.step_limits(done)
                )
        self.services.watchdog.steps_done = step - self.first_step
        self.report.step(done, metrics, rate)
        describe_spikes(self.run, state.model, self.report.spikes)
        if trace.ends_at(done):
            # ``pause`` fetches the metrics of the step, so the step ends before the trace does.
            with self.report.pause("trace"):
                trace.close()
        return state

    def save(self, state: TrainState, done: int, *, wait: bool = False) -> None:
        """Save a checkpoint of ``state`` after ``done`` steps; if ``wait`` is True, wait for it."""
        # On a CPU, a save reads the buffers of the state. A step during the save could not write to
        # these buffers and would need memory for a second state.
        on_cpu = self.run.program.mesh.devices.flat[0].platform == "cpu"
        with self.report.pause("save"):
            describe_spikes(self.run, state.model, self.report.spikes)
            # A run that resumes from this checkpoint does not write the metrics of earlier steps
            # again, so these metrics must be uploaded before the checkpoint.
            self.report.writer.upload()
            save_with_retries(
                self.services.checkpoints,
                done,
                state.checkpointed,
                checkpoint_metadata(self.run, state, done, self.report.monitors()),
                wait=wait or on_cpu,
            )

    def evaluate_and_report(
        self, state: TrainState, done: int, known: Evaluation | None = None
    ) -> Outcome:
        """Report the held-out results after ``done`` steps.

        The results are ``known`` if given. Otherwise they are measured. If a signal arrives
        meanwhile, the evaluation ends without results, and the outcome for the signal is returned.
        The resumed run then starts with this evaluation. Raises ForgettingError if the forgetting
        alarm stops the run.
        """
        with self.report.pause("evaluation"):
            start = time.monotonic()
            try:
                results = known or evaluate(self.run, state, self.services.poll)
            except EvaluationStoppedError as stopped:
                self.report.evaluation_pending = True
                return stopped.outcome
            probed = self.services.probe(state.model) if self.services.probe else {}
            changes = self.report.evaluation(done, results, time.monotonic() - start, probed)
            self.report.alarm.act(done, changes, self.services.checkpoints.steps)
        return Outcome.FINISHED


def checkpoint_metadata(
    run: Run, state: TrainState, steps_done: int, monitors: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the JSON metadata that is stored in the checkpoint after ``steps_done`` steps.

    ``monitors`` contains the values of the monitors.
    """
    saved_spikes = (monitors or {}).get(METADATA)
    spikes = SpikeMonitor(run.config.spikes, run.config.global_batch_size, saved_spikes)
    return {
        NOTED: checksums(state.frozen),
        "step": steps_done,
        "schedule_version": run.schedule_version,
        # The rows of all steps and the rows that rollbacks passed over.
        "rows_consumed": spikes.rows_before(steps_done),
        "config": to_dict(run.config),
        "heldout_documents": run.evaluations.documents,
        "fingerprints": run.fingerprints,
        "prompt_format": {
            "tokenizer": run.tokenizer.fingerprint,
            "template": run.template,
            "generation": run.generation,
        },
        **(monitors or {}),
    }
