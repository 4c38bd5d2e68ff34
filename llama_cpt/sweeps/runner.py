"""Execution of the trials of a sweep. Trials of the same model size use one compiled step."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
import json
import logging
import time
import traceback
from typing import Any, Literal

from etils import epath
import jax

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.fields import to_dict
from llama_cpt.config.loading import load_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.config.sweep import SweepConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.output_folder import check_writable
from llama_cpt.sweeps.leases import hold_lease, lease_owner
from llama_cpt.sweeps.results import (
    TrialStatus,
    evaluation_seconds,
    initial_state_key,
    read_status,
    step_seconds,
    write_results,
    write_status,
)
from llama_cpt.sweeps.status import SweepProgress
from llama_cpt.sweeps.trials import BudgetChain, Trial, make_chains, smallest_trial_tokens
from llama_cpt.training.evaluation import Evaluation, evaluate
from llama_cpt.training.first_state import BranchPoint
from llama_cpt.training.forgetting import ForgettingError
from llama_cpt.training.optimizer import SCHEDULE_VERSION, saved_schedule_version
from llama_cpt.training.program import TrainProgram, compile_key
from llama_cpt.training.resume import check_resume
from llama_cpt.training.run import Run, build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import fit

logger = logging.getLogger(__name__)

SAMPLE_FILE = "heldout_sample.json"
"""Name of the file that stores which held-out documents all trials use."""
WAIT_SECONDS = 20.0
"""Seconds between two checks of the leases of other workers."""


@dataclass
class SharedWork:
    """Compiled programs and evaluations that several trials of this process use."""

    programs: dict[Hashable, TrainProgram] = field(default_factory=dict)
    """Compiled training programs by ``compile_key``."""
    starts: dict[tuple[Hashable, ...], Evaluation] = field(default_factory=dict)
    """Held-out results of the initial weights by ``initial_state_key`` and sample."""
    limit_tokens: int | None = None
    """Number of tokens of the smallest trial, which limits the held-out sample of all trials."""


def run_sweep(sweep: SweepConfig, worker: int = 1, workers: int = 1) -> Outcome:
    """Run the trials of ``sweep`` that have not ended, together with the other workers.

    This process is worker number ``worker`` of ``workers``, counted from 1. It first runs the
    chains of trials that are assigned to it, then chains of other workers that no worker has
    leased. Returns when all trials have ended, or after a stop signal. Diverged trials are not run
    again. Failed trials are run again in the next call. Raises UserError if a config is invalid.
    """
    check_writable(sweep.output)
    chains = left = make_chains(sweep)
    progress = SweepProgress(sweep, [trial for chain in chains for trial in chain], workers)
    for trial in progress.trials:
        _check_unchanged(trial)
    _warn_of_earlier_schedule(sweep, progress.trials)
    name, shared = f"worker {worker}/{workers}", SharedWork()
    shared.limit_tokens = _stored_limit(sweep, progress.trials)
    tried: set[str] = set()
    while left := [chain for chain in left if not _ended(chain, tried)]:
        own = [chain for chain in left if chains.index(chain) % workers == worker - 1]
        # Chains of other workers are taken from the end, because those workers run them last.
        free = [chain for chain in own or left[::-1] if not lease_owner(_lease_file(sweep, chain))]
        if not free:
            progress.report_waiting({lease_owner(_lease_file(sweep, chain)) for chain in left})
            time.sleep(WAIT_SECONDS)
            continue
        with hold_lease(_lease_file(sweep, free[0]), name) as held:
            if held and (outcome := _run_chain(free[0], shared, progress)) is not Outcome.FINISHED:
                return outcome
        if held:
            tried.add(free[0][0].name)
            if not sweep.keep_checkpoints and _ended(free[0], set()):
                _drop_checkpoints(free[0])
    _check_compilations(shared)
    write_results(sweep, progress.trials)
    return Outcome.FINISHED


def _stored_limit(sweep: SweepConfig, trials: Sequence[Trial]) -> int:
    """Return the number of tokens that limits the held-out sample of all trials.

    The number is that of the smallest trial. It is stored when the sweep starts, because the losses
    of trials that are added later must be those of the same sample.
    """
    file = epath.Path(sweep.output) / SAMPLE_FILE
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"limit_tokens": smallest_trial_tokens(trials)}
        write_atomic(file, json.dumps(content) + "\n")
    remedy = "restore it from a copy, or set a different output for the sweep"
    limit = read_json_object(str(file), remedy).get("limit_tokens")
    if type(limit) is not int or limit < 1:
        raise UserError(f"{file}: limit_tokens must be an integer above 0; {remedy}.")
    return limit


def _check_unchanged(trial: Trial) -> None:
    """Raise UserError if ``trial`` has ended with a different config.

    Changes that only cause a warning when a run resumes are permitted.
    """
    file = epath.Path(trial.config.output) / "config.json"
    if read_status(trial) is None or not file.exists():
        return
    now = trial.config.num_steps
    try:
        saved = to_dict(load_config(str(file)))
        check_resume(saved, trial.config, (), saved["num_steps"])
        if saved["num_steps"] != now:
            raise UserError(f"num_steps was {saved['num_steps']}, is {now}.")
    except UserError as error:
        raise UserError(
            f"{trial.config.output} has ended, but not as this sweep would train it: {error} Set "
            "a different output for the sweep, or delete that folder."
        ) from None


def _warn_of_earlier_schedule(sweep: SweepConfig, trials: Sequence[Trial]) -> None:
    """Log a warning if some trials ended with an earlier version of the schedule, and some did not.

    The version makes a difference only for schedules that decay from the end of the warm-up.
    """
    ended = [status for trial in trials if (status := read_status(trial))]
    earlier = sum(status.schedule_version < SCHEDULE_VERSION for status in ended)
    decays = sweep.train.optimizer.schedule in ("cosine", "linear")
    if decays and 0 < earlier < len(trials):
        logger.warning(
            "%s: %d of %d trials were trained by an earlier version, in which the %s learning-rate "
            "schedule began its decay one step early. To train all trials with the same schedule, "
            "set a different output for the sweep.",
            sweep.output,
            earlier,
            len(trials),
            sweep.train.optimizer.schedule,
        )


def _schedule_version(config: TrainConfig) -> int:
    """Return the version of the schedule with which the run in ``config.output`` started."""
    folder = str(epath.Path(config.output) / CHECKPOINTS_FOLDER)
    with CheckpointManager(folder) as checkpoints:
        if not (steps := checkpoints.steps()):
            return SCHEDULE_VERSION
        return saved_schedule_version(checkpoints.metadata(steps[-1]))


def _run_chain(chain: BudgetChain, shared: SharedWork, progress: SweepProgress) -> Outcome:
    for trial in chain:
        status = read_status(trial)
        if status and status.status != "failed":
            continue
        parent = trial.parent
        if parent and (ended := read_status(parent)) and ended.status != "done":
            write_status(trial, TrialStatus(ended.status, f"as {parent.name} did"))
            progress.report(trial)
            continue
        outcome = _run_trial(trial, shared, progress)
        if outcome is not Outcome.FINISHED:
            return outcome
        progress.report(trial)
    return Outcome.FINISHED


def _run_trial(trial: Trial, shared: SharedWork, progress: SweepProgress) -> Outcome:
    """Train ``trial``, write its status, and return the outcome.

    The output of the trial is written to ``log.txt`` in the trial's folder. Raises UserError if the
    trial's config is invalid.
    """
    config, start = trial.config, time.monotonic()
    key = compile_key(config)
    with progress.capture(trial):
        # An error in build_run is a mistake in the sweep's config, so it ends the sweep.
        run = build_run(
            config,
            make_mesh(config.mesh),
            shared.programs.get(key),
            limit_tokens=shared.limit_tokens,
        )
        shared.programs[key] = run.program
        parent = trial.parent
        branch_point = BranchPoint(parent.config.output, trial.first_step) if parent else None
        status: Literal["done", "diverged", "failed"] = "done"
        reason = ""
        try:
            outcome = fit(
                run, branch_point=branch_point, at_start=_initial_losses(trial, run, shared)
            )
        except (DivergedError, ForgettingError) as error:
            status, reason, outcome = "diverged", str(error), Outcome.FINISHED
        except Exception as error:
            # A failed trial must not prevent the other trials from running.
            traceback.print_exc()
            status, reason, outcome = "failed", f"{type(error).__name__}: {error}", Outcome.FINISHED
    if outcome is Outcome.FINISHED:
        times = time.monotonic() - start, step_seconds(trial), evaluation_seconds(trial)
        version = _schedule_version(config)
        write_status(trial, TrialStatus(status, reason, run.tokenizer.fingerprint, *times, version))
    return outcome


def _initial_losses(trial: Trial, run: Run, shared: SharedWork) -> Evaluation | None:
    """Return the held-out results of the trial's initial weights.

    Equal initial weights are evaluated only once per process. Returns None if the trial continues
    from its parent or if the config has no held-out corpora.
    """
    if trial.parent or not run.heldout:
        return None
    key = (*initial_state_key(trial), run.evaluations.documents)
    if key not in shared.starts:
        with jax.set_mesh(run.program.mesh):
            shared.starts[key] = evaluate(run, run.start())
    return shared.starts[key]


def _ended(chain: BudgetChain, tried: set[str]) -> bool:
    """Return whether all trials of ``chain`` have ended.

    A failed trial counts as ended only if the current call of ``run_sweep`` has run its chain.
    ``tried`` contains the name of the first trial of each chain that the current call has run.
    """
    statuses = [status for trial in chain if (status := read_status(trial))]
    if len(statuses) < len(chain):
        return False
    return all(status.status != "failed" for status in statuses) or chain[0].name in tried


def _lease_file(sweep: SweepConfig, chain: BudgetChain) -> epath.Path:
    return epath.Path(sweep.output) / "claims" / f"{chain[0].name}.json"


def _drop_checkpoints(chain: BudgetChain) -> None:
    for trial in chain:
        folder = epath.Path(trial.config.output) / CHECKPOINTS_FOLDER
        if folder.exists():
            folder.rmtree()


def _check_compilations(shared: SharedWork) -> None:
    """Assert that each training step was compiled at most once.

    A second compilation can take as long as all steps of a short trial.
    """
    for program in shared.programs.values():
        step: Any = program.step
        count = step._cache_size()
        assert count <= 1, f"a step was compiled {count} times for one size and batch shape"
