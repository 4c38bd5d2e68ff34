"""The training loop: step, log, evaluate, save.

A resumed run equals an uninterrupted one to the last bit, for four reasons: a checkpoint holds the
whole state; learning rates are functions of the step number, and rows and random draws of the row
number; a stop takes effect only between two steps; and evaluation does not change the state.
"""

from collections.abc import Iterator, Sequence
import contextlib
from dataclasses import dataclass, replace
import json
import sys
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from llama_cpt.checkpoint.checkpoint import CHECKPOINTS_FOLDER, CheckpointManager
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.checkpoint.save_retries import save_with_retries
from llama_cpt.config.fields import to_dict
from llama_cpt.config.loading import save_config as save_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.data.batch import Batch, TokenBatch
from llama_cpt.model.attention import mask_bytes
from llama_cpt.parallel.global_arrays import from_replicated
from llama_cpt.runtime.distributed import is_primary, process_count
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import FILE, read_lines
from llama_cpt.runtime.output_folder import file_lock
from llama_cpt.training.cadence import is_checkpoint_step, is_evaluation_step
from llama_cpt.training.goodput import STEP, Goodput
from llama_cpt.training.heldout import HeldoutResult, evaluate_heldout
from llama_cpt.training.optimizer import learning_rate
from llama_cpt.training.preemption import PreemptionWatcher
from llama_cpt.training.program import describe_precision
from llama_cpt.training.reference import row_sharding
from llama_cpt.training.report import Reporter
from llama_cpt.training.resume import check_fingerprints, check_resume, missing_save
from llama_cpt.training.run import Run
from llama_cpt.training.stop import SAVE_FAILED, Outcome, StopConsensus, StopSignals
from llama_cpt.training.trace import FOLDER as TRACES
from llama_cpt.training.trace import NO_STEPS, Trace
from llama_cpt.training.train_step import TrainState
from llama_cpt.training.watchdog import Watchdog
from llama_cpt.weights.lora_base_check import NOTED, checksums, read_lora_base


@dataclass(frozen=True)
class BranchPoint:
    """A checkpoint of another run, from which this one continues.

    Both configs must agree but for length and decay.
    """

    output: str
    step: int
    """The step of the checkpoint, before the other run's decay."""


Evaluation = dict[str, HeldoutResult]
"""Held-out results by corpus."""


def fit(
    run: Run,
    allow_change: Sequence[str] = (),
    *,
    branch_point: BranchPoint | None = None,
    at_start: Evaluation | None = None,
    started: float | None = None,
    profile: tuple[int, int] = NO_STEPS,
) -> Outcome:
    """Train to ``config.num_steps``, from the newest undamaged checkpoint if there is one.

    A new run starts from ``branch_point`` if given. ``at_start`` is the result of evaluation before
    the first step, if known. ``started`` is the Unix time at which the command started, now if
    None; ``profile`` holds the first and the last step to trace. Raises UserError if the run in
    ``config.output`` cannot be resumed with this config, DivergedError if the loss is not finite.
    """
    config = run.config
    output = epath.Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    clock, trace = Goodput(started), Trace(profile, str(output / TRACES))
    lock = file_lock(
        output / ".lock",
        f"{config.output}: another process trains there; wait for it, or set another output.",
        wait=False,
    )
    with (
        StopSignals() as signals,
        PreemptionWatcher(),
        Watchdog(clock) as watchdog,
        # The first process holds the lock for all processes of the run.
        lock if is_primary() else contextlib.nullcontext(),
        CheckpointManager(str(output / CHECKPOINTS_FOLDER), config.checkpoint.keep) as checkpoints,
        _with_remedy(checkpoints),
        jax.set_mesh(run.program.mesh),
    ):
        state, first_step = _first_state(run, checkpoints, clock, allow_change, branch_point)
        if is_primary():
            trace.warn_if_unreachable(first_step, config.num_steps)
            clock.continue_from(_earlier_lines(config, first_step, allow_change), first_step)
            save_config(config, output / "config.json")
            print(_describe(run), flush=True)
        with (
            Reporter(run, first_step, clock, checkpoints.retention) as report,
            contextlib.closing(trace),
            contextlib.closing(run.batches(first_step)) as batches,
        ):
            if first_step == 0 and run.heldout:
                _evaluate_and_report(run, state, report, 0, at_start)
            services = _LoopServices(checkpoints, report, signals, watchdog, trace)
            state, last, outcome = _loop(run, state, batches, first_step, services)
            report.flush()
            if last > first_step:
                _save(run, state, last, services, wait=True)
            # The process must not exit before the background save is complete.
            with clock.measure("save"):
                checkpoints.wait()
        return outcome


def _first_state(
    run: Run,
    checkpoints: CheckpointManager,
    clock: Goodput,
    allow_change: Sequence[str],
    branch_point: BranchPoint | None,
) -> tuple[TrainState, int]:
    """Return the state to start from and its step: restored, branched off, or new."""
    with clock.measure("restore"):
        step = find_resume_step(run, checkpoints, allow_change)
        if is_primary() and (message := missing_save(run.config.output, step)):
            print(f"warning: {message}", file=sys.stderr)
        if step:
            return restore_state(run, checkpoints, step), step
    if branch_point:
        return _restore_branch_point(run, branch_point), branch_point.step
    return run.start(), 0


@contextlib.contextmanager
def _with_remedy(checkpoints: CheckpointManager) -> Iterator[None]:
    """Context manager that adds the remedy and the valid checkpoint to a DivergedError."""
    try:
        yield
    except DivergedError as error:
        raise DivergedError(
            f"{error} Lower optimizer.peak_learning_rate or lengthen the warm-up. "
            f"{checkpoints.standing()}"
        ) from error


def _earlier_lines(
    config: TrainConfig, first_step: int, allow_change: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl`` that earlier starts of this run wrote.

    Without a checkpoint the folder may hold another run, so its ``config.json`` must agree.
    """
    output = epath.Path(config.output)
    if first_step == 0:
        saved = output / "config.json"
        try:
            check_resume(json.loads(saved.read_text()), config, allow_change)
        except (FileNotFoundError, ValueError):
            return []
    return read_lines(output / FILE)


def _describe(run: Run) -> str:
    """Return one line with the run's size, devices and resolved settings."""
    abstract, mesh = run.program.state_shapes, run.program.mesh
    size, trained = _size(abstract.model), _size(abstract.trained)
    parameters = f"{size:,} parameters"
    if run.config.lora:
        parameters = f"trained parameters: {trained:,} ({trained / size:.2%} of {size:,})"
    axes = " x ".join(f"{name} {count}" for name, count in mesh.shape.items())
    kind = jax.devices()[0].device_kind
    attention = abstract.model.attention
    if attention == "cudnn":
        mask = mask_bytes(run.config.data.sequence_length)
        attention += f" (its mask takes {mask >> 20:,} MiB per row)"
    return (
        f"{run.config.output}: {parameters} on {kind} ({axes}), attention {attention}, "
        f"remat {abstract.model.remat}, compute {describe_precision(run.config.compute)}"
    )


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def find_resume_step(run: Run, checkpoints: CheckpointManager, allow_change: Sequence[str]) -> int:
    """Return the step to resume after, 0 for a new run.

    Raises UserError if the saved config and data do not agree with those of ``run``.
    """
    step = checkpoints.latest_verified()
    if step is None:
        return 0
    saved = checkpoints.metadata(step)
    for warning in check_resume(saved["config"], run.config, allow_change, step):
        if is_primary():
            print(f"resume: {warning}", file=sys.stderr)
    check_fingerprints(saved["fingerprints"], run.fingerprints, allow_change)
    done = step == run.config.num_steps
    message = f"all {step} steps are done; increase num_steps to continue"
    if is_primary():
        print(f"{run.config.output}: {message if done else f'resuming after step {step}'}")
    checkpoints.retention.expect(step)
    return step


def restore_state(run: Run, checkpoints: CheckpointManager, step: int) -> TrainState:
    """Return the state after ``step``.

    Raises UserError if the frozen weights below adapters are not those they were trained with.
    """
    state = checkpoints.restore(step, run.program.state_shapes.checkpointed)
    if base := read_lora_base(checkpoints.metadata(step), run.config.output):
        with base.error_context(run.config.output):
            state = replace(state, frozen=run.frozen())
            base.require_all(state.frozen)
    return state


def _restore_branch_point(run: Run, branch_point: BranchPoint) -> TrainState:
    """Return the state of ``branch_point``, after the checks of a resumed run."""
    step = branch_point.step
    with CheckpointManager(
        str(epath.Path(branch_point.output) / CHECKPOINTS_FOLDER)
    ) as checkpoints:
        if step not in checkpoints.steps() or not checkpoints.is_verified(step):
            raise UserError(
                f"{branch_point.output} holds no intact checkpoint of step {step}; delete that "
                "folder to train it again."
            )
        saved = checkpoints.metadata(step)
        check_resume(saved["config"], run.config, ("optimizer.decay_steps",), step)
        check_fingerprints(saved["fingerprints"], run.fingerprints)
        return restore_state(run, checkpoints, step)


def checkpoint_metadata(run: Run, state: TrainState, steps_done: int) -> dict[str, Any]:
    """Return the metadata that a checkpoint stores next to its arrays."""
    return {
        NOTED: checksums(state.frozen),
        "step": steps_done,
        "rows_consumed": steps_done * run.config.global_batch_size,
        "config": to_dict(run.config),
        "fingerprints": run.fingerprints,
    }


@dataclass(frozen=True)
class _LoopServices:
    """The services that the loop uses."""

    checkpoints: CheckpointManager
    report: Reporter
    signals: StopSignals
    watchdog: Watchdog
    trace: Trace


def _loop(
    run: Run, state: TrainState, batches: Iterator[Batch], first_step: int, services: _LoopServices
) -> tuple[TrainState, int, Outcome]:
    """Train from ``first_step`` to the end or to a signal on any process.

    Returns the state, the number of steps done and the outcome.
    """
    config, consensus, report = run.config, StopConsensus(run.program.mesh), services.report
    report.clock.switch_to(STEP)
    for step in range(first_step, config.num_steps):
        stop, failed = services.signals.outcome.value, services.checkpoints.failed
        vote = consensus.poll(stop or int(failed))
        if vote > SAVE_FAILED:
            return state, step, Outcome(vote)
        if vote == SAVE_FAILED:
            _save(run, state, step, services)
            # Votes cast before this save are about the failure that it has just repaired.
            consensus.reset()
        done, rate = step + 1, learning_rate(config.optimizer, step, config.num_steps)
        with report.clock.measure("data"):
            batch = next(batches)
        if services.trace.begins_at(done):
            with report.pause("trace"):
                services.trace.begin()
        with report.clock.measure("compile" if step == first_step else STEP):
            with jax.profiler.StepTraceAnnotation("step", step_num=done):
                # Returns once the step is dispatched; the old state's buffers are donated.
                state, metrics = run.program.step(state, batch, np.float32(rate))
        services.watchdog.steps_done = step - first_step
        report.step(done, metrics, rate)
        if services.trace.ends_at(done):
            # Reporting fetches the step's metrics, so the trace ends after the step has.
            with report.pause("trace"):
                services.trace.close()
        if run.heldout and is_evaluation_step(config.evaluation, done, config.num_steps):
            _evaluate_and_report(run, state, report, done)
        if is_checkpoint_step(config, done):
            _save(run, state, done, services)
    # A signal during the last step counts only for a single process: several processes have not
    # agreed on it and must exit with the same status.
    return (
        state,
        config.num_steps,
        Outcome.FINISHED if process_count() > 1 else services.signals.outcome,
    )


def _save(
    run: Run, state: TrainState, done: int, services: _LoopServices, *, wait: bool = False
) -> None:
    with services.report.pause("save"):
        # A run that resumes from this checkpoint does not write the earlier lines again, so they
        # must be in the bucket before it.
        services.report.writer.upload()
        save_with_retries(
            services.checkpoints,
            done,
            state.checkpointed,
            checkpoint_metadata(run, state, done),
            wait=wait,
        )


def _evaluate_and_report(
    run: Run, state: TrainState, report: Reporter, done: int, known: Evaluation | None = None
) -> None:
    """Report the evaluation after ``done`` steps: ``known``, or measured now."""
    with report.pause("evaluation"):
        start = time.monotonic()
        results = known or evaluate(run, state)
        report.evaluation(done, results, time.monotonic() - start)


def evaluate(run: Run, state: TrainState) -> Evaluation:
    """Return loss and bits per byte of every held-out corpus."""
    config, mesh = run.config, run.program.mesh
    rows = row_sharding(mesh)

    def score(batch: TokenBatch) -> np.ndarray:
        return np.asarray(run.program.score(state.model, from_replicated(batch, rows)))

    return evaluate_heldout(
        score,
        run.heldout,
        sequence_length=config.data.sequence_length,
        batch_size=config.evaluation.batch_size,
        documents=config.evaluation.documents,
        bos_id=run.tokenizer.bos_id,
    )
