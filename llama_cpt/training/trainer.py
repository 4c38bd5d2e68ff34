"""The only training loop: step, log, evaluate, save."""

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
from llama_cpt.checkpoint.saving import save_with_retries
from llama_cpt.config.fields import to_dict
from llama_cpt.config.loading import save_config as save_config
from llama_cpt.config.schema import EvaluationConfig, TrainConfig
from llama_cpt.data.batch import Batch, TokenBatch
from llama_cpt.model.attention import mask_bytes
from llama_cpt.parallel.global_arrays import from_replicated
from llama_cpt.runtime.distributed import is_primary, process_count
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.metrics import FILE, read_lines
from llama_cpt.runtime.output_folder import file_lock
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
    """Another run's first steps, which are this one's too: the same but for length and decay."""

    output: str
    step: int
    """Of its checkpoint, before its decay."""


Evaluation = dict[str, HeldoutResult]


def fit(
    run: Run,
    allow_change: Sequence[str] = (),
    *,
    trunk: BranchPoint | None = None,
    at_start: Evaluation | None = None,
    started: float | None = None,
    profile: tuple[int, int] = NO_STEPS,
) -> Outcome:
    """Train to ``config.num_steps``, from the newest undamaged checkpoint where there is one.

    A new run starts from ``trunk`` if given; ``at_start`` is what evaluation before the first step
    gives, where that is known. ``started`` is the time from which the run's seconds count, now if
    None; ``profile`` are the first and the last step to trace. Raises UserError where the run in
    ``config.output`` cannot be resumed with this config, DivergedError where its loss is lost.
    """
    config = run.config
    output = epath.Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    clock, trace = Goodput(started), Trace(profile, str(output / TRACES))
    alone = file_lock(
        output / ".lock",
        f"{config.output}: another process trains there; wait for it, or name another output.",
        wait=False,
    )
    with (
        StopSignals() as signals,
        PreemptionWatcher(),
        Watchdog(clock) as watchdog,
        alone if is_primary() else contextlib.nullcontext(),
        CheckpointManager(str(output / CHECKPOINTS_FOLDER), config.checkpoint.keep) as checkpoints,
        _with_remedy(checkpoints),
        jax.set_mesh(run.program.mesh),
    ):
        with clock.measure("restore"):
            first_step = find_resume_step(run, checkpoints, allow_change)
            if is_primary() and (message := missing_save(config.output, first_step)):
                print(f"warning: {message}", file=sys.stderr)
            state = restore_state(run, checkpoints, first_step) if first_step else None
        if state is None:
            state = _from_trunk(run, trunk) if trunk else run.start()
            first_step = trunk.step if trunk else 0
        if is_primary():
            trace.warn_if_unreachable(first_step, config.num_steps)
            clock.continue_from(_earlier_lines(config, first_step, allow_change), first_step)
            save_config(config, output / "config.json")
            print(_described(run), flush=True)
        with (
            Reporter(run, first_step, clock, checkpoints.retention) as report,
            contextlib.closing(trace),
            contextlib.closing(run.batches(first_step)) as batches,
        ):
            if first_step == 0 and run.heldout:
                _evaluated(run, state, report, 0, at_start)
            around = _LoopServices(checkpoints, report, signals, watchdog, trace)
            state, last, outcome = _loop(run, state, batches, first_step, around)
            report.flush()
            if last > first_step:
                _save(run, state, last, around, wait=True)
            with clock.measure("save"):
                checkpoints.wait()
        return outcome


@contextlib.contextmanager
def _with_remedy(checkpoints: CheckpointManager) -> Iterator[None]:
    """Context manager that adds the remedy and the checkpoint that stands to a DivergedError."""
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
    """What this run's starts before told in ``metrics.jsonl``.

    Without a checkpoint the folder may be another run's: its ``config.json`` must agree.
    """
    output = epath.Path(config.output)
    if first_step == 0:
        saved = output / "config.json"
        try:
            check_resume(json.loads(saved.read_text()), config, allow_change)
        except (FileNotFoundError, ValueError):
            return []
    return read_lines(output / FILE)


def _described(run: Run) -> str:
    """The run in a line: how large, on what, and what ``auto`` came to."""
    abstract, mesh = run.program.state_shapes, run.program.mesh
    size, trained = _size(abstract.model), _size(abstract.trained)
    told = f"{size:,} parameters"
    if run.config.lora:
        told = f"trained parameters: {trained:,} ({trained / size:.2%} of {size:,})"
    axes = " x ".join(f"{name} {count}" for name, count in mesh.shape.items())
    kind = jax.devices()[0].device_kind
    attention = abstract.model.attention
    if attention == "cudnn":
        mask = mask_bytes(run.config.data.sequence_length)
        attention += f" (its mask takes {mask >> 20:,} MiB a row)"
    return (
        f"{run.config.output}: {told} on {kind} ({axes}), attention {attention}, "
        f"remat {abstract.model.remat}, compute {describe_precision(run.config.compute)}"
    )


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def find_resume_step(run: Run, checkpoints: CheckpointManager, allow_change: Sequence[str]) -> int:
    """The step to go on from, 0 for a new run; the saved config must agree with this one."""
    step = checkpoints.latest_verified()
    if step is None:
        return 0
    saved = checkpoints.metadata(step)
    for warning in check_resume(saved["config"], run.config, allow_change, step):
        if is_primary():
            print(f"resume: {warning}", file=sys.stderr)
    check_fingerprints(saved["fingerprints"], run.fingerprints, allow_change)
    done = step == run.config.num_steps
    told = "all steps are done: raise num_steps to go on" if done else "resuming"
    if is_primary():
        print(f"{run.config.output}: {told} after step {step}")
    checkpoints.retention.expect(step)
    return step


def restore_state(run: Run, checkpoints: CheckpointManager, step: int) -> TrainState:
    """The state after ``step``; the weights beside adapters must be those of before."""
    state = checkpoints.restore(step, run.program.state_shapes.checkpointed)
    if base := read_lora_base(checkpoints.metadata(step), run.config.output):
        with base.error_context(run.config.output):
            state = replace(state, frozen=run.frozen())
            base.require_all(state.frozen)
    return state


def _from_trunk(run: Run, trunk: BranchPoint) -> TrainState:
    with CheckpointManager(str(epath.Path(trunk.output) / CHECKPOINTS_FOLDER)) as checkpoints:
        if trunk.step not in checkpoints.steps() or not checkpoints.is_verified(trunk.step):
            raise UserError(f"{trunk.output} holds no sound checkpoint of step {trunk.step}.")
        saved = checkpoints.metadata(trunk.step)
        check_resume(saved["config"], run.config, ("optimizer.decay_steps",), trunk.step)
        check_fingerprints(saved["fingerprints"], run.fingerprints)
        return restore_state(run, checkpoints, trunk.step)


def checkpoint_metadata(run: Run, state: TrainState, steps_done: int) -> dict[str, Any]:
    """What a checkpoint says beside its arrays."""
    return {
        NOTED: checksums(state.frozen),
        "step": steps_done,
        "rows_consumed": steps_done * run.config.global_batch_size,
        "config": to_dict(run.config),
        "fingerprints": run.fingerprints,
    }


def is_evaluation_step(config: EvaluationConfig, steps_done: int, num_steps: int) -> bool:
    """Before the first step, at powers of two early on, every ``every_steps``, and at the end."""
    power_of_two = steps_done & (steps_done - 1) == 0
    return (
        steps_done in (0, num_steps)
        or steps_done % config.every_steps == 0
        or (config.early_evaluations and power_of_two and steps_done < config.every_steps)
    )


@dataclass(frozen=True)
class _LoopServices:
    """What goes on beside the steps."""

    checkpoints: CheckpointManager
    report: Reporter
    signals: StopSignals
    watchdog: Watchdog
    trace: Trace


def _loop(
    run: Run, state: TrainState, batches: Iterator[Batch], first_step: int, around: _LoopServices
) -> tuple[TrainState, int, Outcome]:
    """Steps from ``first_step`` until the end or a signal on any process; how many are done."""
    config, wishes, report = run.config, StopConsensus(run.program.mesh), around.report
    report.clock.switch_to(STEP)
    for step in range(first_step, config.num_steps):
        stop, failed = around.signals.outcome.value, around.checkpoints.failed
        wish = wishes.poll(stop or int(failed))
        if wish > SAVE_FAILED:
            return state, step, Outcome(wish)
        if wish == SAVE_FAILED:
            _save(run, state, step, around)
            wishes.reset()
        done, rate = step + 1, learning_rate(config.optimizer, step, config.num_steps)
        with report.clock.measure("data"):
            batch = next(batches)
        if around.trace.begins_at(done):
            with report.pause("trace"):
                around.trace.begin()
        with report.clock.measure("compile" if step == first_step else STEP):
            with jax.profiler.StepTraceAnnotation("step", step_num=done):
                state, metrics = run.program.step(state, batch, np.float32(rate))
        around.watchdog.steps_done = step - first_step
        report.step(done, metrics, rate)
        if around.trace.ends_at(done):
            # It waits for the step before.
            with report.pause("trace"):
                around.trace.close()
        if run.heldout and is_evaluation_step(config.evaluation, done, config.num_steps):
            _evaluated(run, state, report, done)
        if done % config.checkpoint.every_steps == 0:
            _save(run, state, done, around)
    # One process alone may stop after its last step; many have not agreed on it.
    return (
        state,
        config.num_steps,
        Outcome.FINISHED if process_count() > 1 else around.signals.outcome,
    )


def _save(
    run: Run, state: TrainState, done: int, around: _LoopServices, *, wait: bool = False
) -> None:
    with around.report.pause("save"):
        # Who goes on from here never writes the lines before it again.
        around.report.writer.upload()
        save_with_retries(
            around.checkpoints,
            done,
            state.checkpointed,
            checkpoint_metadata(run, state, done),
            wait=wait,
        )


def _evaluated(
    run: Run, state: TrainState, report: Reporter, done: int, known: Evaluation | None = None
) -> None:
    """Measure, unless it is ``known``, and tell."""
    with report.pause("evaluation"):
        start = time.monotonic()
        results = known or evaluate(run, state)
        report.evaluation(done, results, time.monotonic() - start)


def evaluate(run: Run, state: TrainState) -> Evaluation:
    """Held-out loss and bits per byte of every held-out corpus."""
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
