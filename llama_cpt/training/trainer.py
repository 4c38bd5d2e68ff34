"""The training loop, with evaluation, logging and checkpoints.

A resumed run equals an uninterrupted run bit for bit, for four reasons. A checkpoint contains
the whole state. Learning rates depend only on the step number, and rows and random draws depend
only on the row number. A run stops only between two steps or during an evaluation, which does not
change the state.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
import contextlib
from dataclasses import dataclass
from functools import partial
import logging
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER, save_with_retries
from llama_cpt.config.fields import to_dict
from llama_cpt.config.loading import save_config as save_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.batch import Batch
from llama_cpt.model.llama import Llama
from llama_cpt.runtime.distributed import is_primary, process_count
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.host_memory import release_after_compilations
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.metrics import FILE, read_lines
from llama_cpt.runtime.output_folder import file_lock
from llama_cpt.runtime.wandb_run import WandbRun
from llama_cpt.training.cadence import is_checkpoint_step
from llama_cpt.training.evaluation import Evaluation, EvaluationStoppedError, evaluate
from llama_cpt.training.evaluation_plan import seconds_per_evaluation
from llama_cpt.training.first_state import BranchPoint, FirstState, first_state
from llama_cpt.training.forgetting import ForgettingAlarm
from llama_cpt.training.goodput import STEP, Goodput
from llama_cpt.training.optimizer import learning_rate
from llama_cpt.training.report import Reporter
from llama_cpt.training.resume import check_resume, missing_save
from llama_cpt.training.rollback import needed_checkpoints, roll_back
from llama_cpt.training.run import Run
from llama_cpt.training.spike_report import describe_spikes
from llama_cpt.training.spikes import METADATA, RollbackRequest, SpikeMonitor
from llama_cpt.training.stop import (
    SAVE_FAILED,
    Outcome,
    PreemptionWatcher,
    StopConsensus,
    StopSignals,
)
from llama_cpt.training.trace import FOLDER as TRACES
from llama_cpt.training.trace import NO_STEPS, Trace
from llama_cpt.training.train_step import TrainState
from llama_cpt.training.watchdog import Watchdog
from llama_cpt.weights.lora_base_check import NOTED, checksums

logger = logging.getLogger(__name__)

Probe = Callable[[Llama], dict[str, float]]
"""A function that measures a model and returns values by the name of the metric."""


def fit(
    run: Run,
    allow_change: Sequence[str] = (),
    *,
    branch_point: BranchPoint | None = None,
    at_start: Evaluation | None = None,
    started: float | None = None,
    profile: tuple[int, int] = NO_STEPS,
    probe: Probe | None = None,
) -> Outcome:
    """Train ``run`` until all steps are done or a stop signal arrives, and return the outcome.

    Training resumes from the newest undamaged checkpoint in ``config.output``. Without a
    checkpoint, training continues from ``branch_point`` if given, and otherwise starts from the
    initial weights. ``allow_change`` contains the names of the config fields that may change when
    the run resumes. ``at_start`` contains the held-out results before the first step. If it is
    None, they are measured. ``started`` is the monotonic time at which the command was launched, by
    default the current time. ``profile`` contains the first and the last step to trace. ``probe``
    is called at each held-out evaluation, and its results are logged. Raises
    UserError if the run cannot be resumed with this config, and DivergedError if a loss or a
    gradient is not finite and ``spikes.action`` does not permit it, and ForgettingError if the
    forgetting alarm stops the run.
    """
    config = run.config
    output = epath.Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    clock, trace = Goodput(started), Trace(profile, str(output / TRACES))
    release_after_compilations()
    with (
        StopSignals() as signals,
        PreemptionWatcher(),
        Watchdog(clock) as watchdog,
        _run_lock(output),
        CheckpointManager(str(output / CHECKPOINTS_FOLDER), config.checkpoint.keep) as checkpoints,
        _with_remedy(checkpoints),
        jax.set_mesh(run.program.mesh),
    ):
        with clock.measure("restore"):
            start = first_state(run, checkpoints, allow_change, branch_point)
        if is_primary():
            _announce(start, clock, trace, allow_change)
        monitor = SpikeMonitor(config.spikes, config.global_batch_size, start.saved.get(METADATA))
        consensus = StopConsensus(run.program.mesh)
        project = config.wandb_project if is_primary() else ""
        with (
            contextlib.closing(trace),
            WandbRun(project, config.output, to_dict(config)) as wandb_run,
        ):
            services = _LoopServices(
                checkpoints, clock, signals, consensus, watchdog, trace, probe, wandb_run
            )
            while True:
                try:
                    return _attempt(start, monitor, services, at_start)
                except RollbackRequest as request:
                    spike = request.spike
                # The frames of the attempt, which contain its state, no longer exist.
                with clock.measure("restore"):
                    restart = lambda: first_state(run, checkpoints, None, branch_point)
                    origin = branch_point.step if branch_point else 0
                    start, monitor = roll_back(
                        config, spike, monitor, checkpoints, clock, restart, origin
                    )


def _announce(start: FirstState, clock: Goodput, trace: Trace, allow_change: Sequence[str]) -> None:
    """Save the config, add the time of earlier attempts to ``clock``, and describe the run."""
    run, config = start.run, start.run.config
    if message := missing_save(config.output, start.step):
        logger.warning("%s", message)
    trace.warn_if_unreachable(start.step, config.num_steps)
    earlier = _earlier_lines(config, start.step, allow_change)
    clock.continue_from(earlier, start.step)
    save_config(config, epath.Path(config.output) / "config.json")
    logger.info("%s", run.describe())
    logger.info("%s", run.evaluations.describe(seconds_per_evaluation(earlier)))
    if run.evaluations.warning:
        logger.warning("%s", run.evaluations.warning)


def _attempt(
    start: FirstState,
    monitor: SpikeMonitor,
    services: "_LoopServices",
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
    with (
        Reporter(
            run, first_step, clock, checkpoints.retention, monitor, alarm, services.wandb_run
        ) as report,
        contextlib.closing(run.batches(monitor.rows_before(first_step))) as batches,
    ):
        last, outcome = first_step, Outcome.FINISHED
        if run.heldout and start.unevaluated:
            known = None if first_step else at_start
            outcome = _evaluate_and_report(run, state, report, services, first_step, known)
        if outcome is Outcome.FINISHED:
            state, last, outcome = _loop(run, state, batches, first_step, services, report)
        report.flush()
        if last > first_step:
            _save(run, state, last, services, report, wait=True)
        # The process must not exit while a save is running in the background.
        with clock.measure("save"):
            checkpoints.wait()
    return outcome


def _run_lock(output: epath.Path) -> contextlib.AbstractContextManager[None]:
    """Return a lock on the output folder, which the primary process holds for the whole run."""
    if not is_primary():
        return contextlib.nullcontext()
    busy = (
        f"{output}: another process trains in this folder; wait until it ends, or set a different "
        "output folder."
    )
    return file_lock(output / ".lock", busy, wait=False)


@contextlib.contextmanager
def _with_remedy(checkpoints: CheckpointManager) -> Generator[None]:
    """Context manager that adds a remedy and the newest checkpoint to a DivergedError."""
    try:
        yield
    except DivergedError as error:
        raise DivergedError(
            f"{error} Lower optimizer.peak_learning_rate or increase optimizer.warmup_steps. "
            f"{checkpoints.standing()}"
        ) from error


def _earlier_lines(
    config: TrainConfig, first_step: int, allow_change: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl`` that earlier attempts of this run wrote.

    If the run has no checkpoint, the lines can belong to a different run. In this case, they are
    returned only if ``check_resume`` accepts the saved ``config.json``.
    """
    output = epath.Path(config.output)
    if first_step == 0:
        saved = output / "config.json"
        try:
            check_resume(read_json_object(str(saved), "restore it"), config, allow_change)
        except UserError:
            return []
    return read_lines(output / FILE)


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


@dataclass(frozen=True)
class _LoopServices:
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


def _loop(  # noqa: PLR0913 - the state and where it comes from, services and reports
    run: Run,
    state: TrainState,
    batches: Iterator[Batch],
    first_step: int,
    services: _LoopServices,
    report: Reporter,
) -> tuple[TrainState, int, Outcome]:
    """Train from ``first_step`` until all steps are done or any process receives a signal.

    Returns the state, the number of steps done and the outcome.
    """
    config = run.config
    report.clock.switch_to(STEP)
    for step in range(first_step, config.num_steps):
        vote = services.poll()
        if vote > SAVE_FAILED:
            return state, step, Outcome(vote)
        if vote == SAVE_FAILED:
            _save(run, state, step, services, report)
            # Pending votes refer to the failed save, which has now been repeated.
            services.consensus.reset()
        with report.clock.measure("data"):
            batch = next(batches)
        state = _train_step(run, state, batch, step, first_step, services, report)
        done = step + 1
        if done in run.evaluations.steps:
            outcome = _evaluate_and_report(run, state, report, services, done)
            if outcome is not Outcome.FINISHED:
                return state, done, outcome
        if is_checkpoint_step(config, done):
            _save(run, state, done, services, report)
    # Several processes cannot agree on a signal that arrives during the last step, and all of them
    # must exit with the same status, so they ignore the signal. A single process reports it.
    return (
        state,
        config.num_steps,
        Outcome.FINISHED if process_count() > 1 else services.signals.outcome,
    )


def _train_step(  # noqa: PLR0913 - the state and where it comes from, services and reports
    run: Run,
    state: TrainState,
    batch: Batch,
    step: int,
    first_step: int,
    services: _LoopServices,
    report: Reporter,
) -> TrainState:
    """Dispatch step number ``step``, counted from 0, and return the new state.

    Also reports the previous step, and starts or stops the profiler trace at its first or last
    step.
    """
    trace, done, config = services.trace, step + 1, run.config
    rate = learning_rate(config.optimizer, step, config.num_steps, run.schedule_version)
    if trace.begins_at(done):
        with report.pause("trace"):
            trace.begin()
    with report.clock.measure("compile" if step == first_step else STEP):
        with jax.profiler.StepTraceAnnotation("step", step_num=done):
            # The call returns when the step is dispatched. It donates the buffers of the old state.
            state, metrics = run.program.step(
                state, batch, np.float32(rate), *report.step_limits(done)
            )
    services.watchdog.steps_done = step - first_step
    report.step(done, metrics, rate)
    describe_spikes(run, state.model, report.spikes)
    if trace.ends_at(done):
        # ``pause`` fetches the metrics of the step, so the step ends before the trace does.
        with report.pause("trace"):
            trace.close()
    return state


def _save(
    run: Run,
    state: TrainState,
    done: int,
    services: _LoopServices,
    report: Reporter,
    *,
    wait: bool = False,
) -> None:
    # On a CPU, a save reads the buffers of the state. A step during the save could not write to
    # these buffers and would need memory for a second state.
    on_cpu = run.program.mesh.devices.flat[0].platform == "cpu"
    with report.pause("save"):
        describe_spikes(run, state.model, report.spikes)
        # A run that resumes from this checkpoint does not write the metrics of earlier steps again,
        # so these metrics must be uploaded before the checkpoint.
        report.writer.upload()
        save_with_retries(
            services.checkpoints,
            done,
            state.checkpointed,
            checkpoint_metadata(run, state, done, report.monitors()),
            wait=wait or on_cpu,
        )


def _evaluate_and_report(
    run: Run,
    state: TrainState,
    report: Reporter,
    services: _LoopServices,
    done: int,
    known: Evaluation | None = None,
) -> Outcome:
    """Report the held-out results after ``done`` steps.

    The results are ``known`` if given. Otherwise they are measured. If a signal arrives meanwhile,
    the evaluation ends without results, and the outcome for the signal is returned. The resumed run
    then starts with this evaluation. Raises ForgettingError if the forgetting alarm stops the run.
    """
    with report.pause("evaluation"):
        start = time.monotonic()
        try:
            results = known or evaluate(run, state, services.poll)
        except EvaluationStoppedError as stopped:
            return stopped.outcome
        probed = services.probe(state.model) if services.probe else {}
        changes = report.evaluation(done, results, time.monotonic() - start, probed)
        report.alarm.act(done, changes, services.checkpoints.steps)
    return Outcome.FINISHED
