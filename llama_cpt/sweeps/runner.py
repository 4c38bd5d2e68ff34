"""Running a sweep: every trial once, on one compiled step per size, with its status recorded."""

from collections.abc import Hashable
from dataclasses import dataclass, field
import json
import time
import traceback

from etils import epath
import jax

from llama_cpt.checkpoint.checkpoint import CHECKPOINTS_FOLDER
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.config.sweep import SweepConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
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
from llama_cpt.sweeps.trials import BudgetChain, Trial, make_chains
from llama_cpt.training.program import TrainProgram, compile_key
from llama_cpt.training.resume import check_resume
from llama_cpt.training.run import Run, build_run
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import BranchPoint, Evaluation, evaluate, fit

WAIT_SECONDS = 20.0
"""Seconds between checks of the leases of other workers."""


@dataclass
class SharedWork:
    """Work that trials share."""

    programs: dict[Hashable, TrainProgram] = field(default_factory=dict)
    """Compiled programs by ``compile_key``."""
    starts: dict[tuple[Hashable, ...], Evaluation] = field(default_factory=dict)
    """Held-out losses before the first step, by ``initial_state_key``."""


def run_sweep(sweep: SweepConfig, worker: int = 1, workers: int = 1) -> Outcome:
    """Run the rest of ``worker``'s share, then trials that other workers have not taken or lost.

    Returns when every trial has ended, or after a signal. Trials that diverged are not run again;
    failed ones are. Raises UserError for a mistake that is found before a trial's first step.
    """
    check_writable(sweep.output)
    chains = left = make_chains(sweep)
    progress = SweepProgress(sweep, [trial for chain in chains for trial in chain], workers)
    for trial in progress.trials:
        _check_unchanged(trial)
    name, shared = f"worker {worker}/{workers}", SharedWork()
    tried: set[str] = set()
    while left := [chain for chain in left if not _ended(chain, tried)]:
        own = [chain for chain in left if chains.index(chain) % workers == worker - 1]
        # Shares of others are taken from the end, which their own workers reach last.
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


def _check_unchanged(trial: Trial) -> None:
    """Raise UserError if ``trial`` has ended with another config than that of the sweep."""
    file = epath.Path(trial.config.output) / "config.json"
    if read_status(trial) is None or not file.exists():
        return
    saved, now = json.loads(file.read_text()), trial.config.num_steps
    try:
        check_resume(saved, trial.config, (), saved["num_steps"])
        if saved["num_steps"] != now:
            raise UserError(f"num_steps was {saved['num_steps']}, is {now}.")
    except UserError as error:
        raise UserError(
            f"{trial.config.output} has ended, but not as this sweep would train it: {error} Set "
            "another output for the sweep, or delete that folder."
        ) from None


def _run_chain(chain: BudgetChain, shared: SharedWork, progress: SweepProgress) -> Outcome:
    for trial in chain:
        status = read_status(trial)
        if status and status.status != "failed":
            continue
        parent = read_status(trial.parent) if trial.parent else None
        if parent and parent.status != "done":
            write_status(trial, TrialStatus(parent.status, f"as {trial.parent.name} did"))
            progress.report(trial)
            continue
        outcome = _run_trial(trial, shared, progress)
        if outcome is not Outcome.FINISHED:
            return outcome
        progress.report(trial)
    return Outcome.FINISHED


def _run_trial(trial: Trial, shared: SharedWork, progress: SweepProgress) -> Outcome:
    """Train ``trial`` and record its status; its output goes to ``log.txt`` in its folder."""
    config, start = trial.config, time.monotonic()
    key = compile_key(config)
    with progress.capture(trial):
        # An error here is a mistake in the sweep's config: it ends the sweep before any step.
        run = build_run(config, make_mesh(config.mesh), shared.programs.get(key))
        shared.programs[key] = run.program
        parent = trial.parent
        branch_point = BranchPoint(parent.config.output, trial.first_step) if parent else None
        status, reason = "done", ""
        try:
            outcome = fit(
                run, branch_point=branch_point, at_start=_initial_losses(trial, run, shared)
            )
        except DivergedError as error:
            status, reason, outcome = "diverged", str(error), Outcome.FINISHED
        except Exception as error:
            # Any failure is recorded, so that the other trials run.
            traceback.print_exc()
            status, reason, outcome = "failed", f"{type(error).__name__}: {error}", Outcome.FINISHED
    if outcome is Outcome.FINISHED:
        times = time.monotonic() - start, step_seconds(trial), evaluation_seconds(trial)
        write_status(trial, TrialStatus(status, reason, run.tokenizer.fingerprint, *times))
    return outcome


def _initial_losses(trial: Trial, run: Run, shared: SharedWork) -> Evaluation | None:
    """Return the held-out losses of the initial weights, measured once for all trials."""
    if trial.parent or not run.heldout:
        return None
    key = initial_state_key(trial)
    if key not in shared.starts:
        with jax.set_mesh(run.program.mesh):
            shared.starts[key] = evaluate(run, run.start())
    return shared.starts[key]


def _ended(chain: BudgetChain, tried: set[str]) -> bool:
    """Return whether ``chain`` is complete, or has failed in this call of the command."""
    statuses = [read_status(trial) for trial in chain]
    if None in statuses:
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
    """Assert that no step was compiled twice, which would double the cost of short trials."""
    for program in shared.programs.values():
        count = program.step._cache_size()
        assert count <= 1, f"a step was compiled {count} times for one size and batch shape"
