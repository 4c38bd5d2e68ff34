"""The only training loop: step, log, evaluate, save."""

from collections.abc import Sequence
import contextlib
from dataclasses import dataclass, replace
import enum
import signal
import sys
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from llama_cpt.batch import TokenBatch
from llama_cpt.config import EvaluationConfig
from llama_cpt.config_file import save
from llama_cpt.errors import UserError
from llama_cpt.evaluation.perplexity import HeldoutResult, evaluate_heldout
from llama_cpt.fields import to_dict
from llama_cpt.folders import locked
from llama_cpt.model.attention import mask_bytes
from llama_cpt.model.lora_base import NOTED, checksums, lora_base
from llama_cpt.training.checkpoint import FOLDER, Checkpoints
from llama_cpt.training.optimizer import learning_rate
from llama_cpt.training.reference import row_sharding
from llama_cpt.training.report import Reporter
from llama_cpt.training.resume import check_fingerprints, check_resume
from llama_cpt.training.run import Run, batch_sharding, put_batch
from llama_cpt.training.train_step import TrainState


class Outcome(enum.Enum):
    """How a call of ``fit`` ended; the value is the process's exit status."""

    FINISHED = 0
    PREEMPTED = 75
    """SIGTERM: saved, to be started again (EX_TEMPFAIL, which the launch scripts restart on)."""
    INTERRUPTED = 130
    """Ctrl-C: saved."""


class Signals:
    """SIGTERM and SIGINT as a wish to stop after the step under way; a second Ctrl-C is obeyed."""

    def __init__(self) -> None:
        self.outcome = Outcome.FINISHED

    def __enter__(self) -> "Signals":
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.outcome is Outcome.INTERRUPTED:
            raise KeyboardInterrupt
        interrupted = number == signal.SIGINT
        self.outcome = Outcome.INTERRUPTED if interrupted else Outcome.PREEMPTED
        print(f"\n{signal.Signals(number).name}: saving, then leaving", file=sys.stderr)


@dataclass(frozen=True)
class Trunk:
    """Another run's first steps, which are this one's too: the same but for length and decay."""

    output: str
    step: int
    """Of its checkpoint, before its decay."""


Evaluation = dict[str, HeldoutResult]


def fit(
    run: Run,
    allow_change: Sequence[str] = (),
    *,
    trunk: Trunk | None = None,
    at_start: Evaluation | None = None,
) -> Outcome:
    """Train to ``config.num_steps``, from the newest undamaged checkpoint where there is one.

    A new run starts from ``trunk`` if given; ``at_start`` is what evaluation before the first step
    gives, where that is known. Raises UserError where the run in ``config.output`` cannot be
    resumed with this config, DivergedError where its loss is lost.
    """
    config = run.config
    output = epath.Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    first_process = jax.process_index() == 0
    alone = locked(
        output / ".lock",
        f"{config.output}: another process trains there; wait for it, or name another output.",
        wait=False,
    )
    with (
        Signals() as signals,
        alone if first_process else contextlib.nullcontext(),
        Checkpoints(str(output / FOLDER), config.checkpoint.keep) as checkpoints,
        jax.set_mesh(run.program.mesh),
    ):
        first_step = resumed_step(run, checkpoints, allow_change)
        if first_step:
            state = restored(run, checkpoints, first_step)
        elif trunk:
            state, first_step = _from_trunk(run, trunk), trunk.step
        else:
            state = run.start()
        if first_process:
            save(config, output / "config.json")
            print(_described(run), flush=True)
        with Reporter(run, first_step) as report:
            if first_step == 0 and run.heldout:
                _evaluated(run, state, report, 0, at_start)
            state, last = _loop(run, state, first_step, checkpoints, report, signals)
        if last > first_step:
            checkpoints.save(last, state.saved, about(run, state, last))
        checkpoints.wait()
        return signals.outcome


def _described(run: Run) -> str:
    """The run in a line: how large, on what, and what ``auto`` came to."""
    abstract, mesh = run.program.abstract, run.program.mesh
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
        f"remat {abstract.model.remat}, compute {run.config.compute.dtype}"
    )


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def resumed_step(run: Run, checkpoints: Checkpoints, allow_change: Sequence[str]) -> int:
    """The step to go on from, 0 for a new run; the saved config must agree with this one."""
    step = checkpoints.latest_verified()
    if step is None:
        return 0
    saved = checkpoints.about(step)
    for warning in check_resume(saved["config"], run.config, allow_change, step):
        print(f"resume: {warning}", file=sys.stderr)
    check_fingerprints(saved["fingerprints"], run.fingerprints, allow_change)
    done = step == run.config.num_steps
    told = "all steps are done: raise num_steps to go on" if done else "resuming"
    print(f"{run.config.output}: {told} after step {step}")
    return step


def restored(run: Run, checkpoints: Checkpoints, step: int) -> TrainState:
    """The state after ``step``; the weights beside adapters must be those of before."""
    state = checkpoints.restore(step, run.program.abstract.saved)
    if base := lora_base(checkpoints.about(step), run.config.output):
        with base.named(run.config.output):
            state = replace(state, frozen=run.frozen())
            base.require_all(state.frozen)
    return state


def _from_trunk(run: Run, trunk: Trunk) -> TrainState:
    with Checkpoints(str(epath.Path(trunk.output) / FOLDER)) as checkpoints:
        if trunk.step not in checkpoints.steps() or not checkpoints.is_verified(trunk.step):
            raise UserError(f"{trunk.output} holds no sound checkpoint of step {trunk.step}.")
        saved = checkpoints.about(trunk.step)
        check_resume(saved["config"], run.config, ("optimizer.decay_steps",), trunk.step)
        check_fingerprints(saved["fingerprints"], run.fingerprints)
        return restored(run, checkpoints, trunk.step)


def about(run: Run, state: TrainState, steps_done: int) -> dict[str, Any]:
    """What a checkpoint says beside its arrays."""
    return {
        NOTED: checksums(state.frozen),
        "step": steps_done,
        "rows_consumed": steps_done * run.config.global_batch_size,
        "config": to_dict(run.config),
        "fingerprints": run.fingerprints,
    }


def evaluates_at(config: EvaluationConfig, steps_done: int, num_steps: int) -> bool:
    """Before the first step, at powers of two early on, every ``every_steps``, and at the end."""
    power_of_two = steps_done & (steps_done - 1) == 0
    return (
        steps_done in (0, num_steps)
        or steps_done % config.every_steps == 0
        or (config.dense and power_of_two and steps_done < config.every_steps)
    )


def _loop(
    run: Run,
    state: TrainState,
    first_step: int,
    checkpoints: Checkpoints,
    report: Reporter,
    signals: Signals,
) -> tuple[TrainState, int]:
    """Steps from ``first_step`` until the end or a signal; the state and the steps done."""
    config = run.config
    sharding = batch_sharding(run.program.mesh)
    source = run.batches(first_step)
    for step in range(first_step, config.num_steps):
        if signals.outcome is not Outcome.FINISHED:
            return state, step
        rate = learning_rate(config.optimizer, step, config.num_steps)
        batch = put_batch(next(source), sharding)
        state, metrics = run.program.step(state, batch, np.float32(rate))
        done = step + 1
        report.step(done, metrics, rate)
        checkpoints.raise_if_failed()
        if run.heldout and evaluates_at(config.evaluation, done, config.num_steps):
            _evaluated(run, state, report, done)
        if done % config.checkpoint.every_steps == 0:
            with report.pause():
                checkpoints.save(done, state.saved, about(run, state, done))
    return state, config.num_steps


def _evaluated(
    run: Run, state: TrainState, report: Reporter, done: int, known: Evaluation | None = None
) -> None:
    """Measure, unless it is ``known``, and tell."""
    with report.pause():
        start = time.monotonic()
        results = known or evaluate(run, state)
        report.evaluation(done, results, time.monotonic() - start)


def evaluate(run: Run, state: TrainState) -> Evaluation:
    """Held-out loss and bits per byte of every held-out corpus."""
    config, mesh = run.config, run.program.mesh
    rows = row_sharding(mesh)

    def score(batch: TokenBatch) -> np.ndarray:
        return np.asarray(run.program.score(state.model, jax.device_put(batch, rows)))

    return evaluate_heldout(
        score,
        run.heldout,
        sequence_length=config.data.sequence_length,
        batch_size=config.evaluation.batch_size,
        documents=config.evaluation.documents,
        bos_id=run.tokenizer.bos_id,
    )
