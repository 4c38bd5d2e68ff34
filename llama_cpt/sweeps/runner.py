"""A sweep's trials run: one compiled step a size, an end that is noted whatever it is."""

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
"""Between looks at what other workers hold."""


@dataclass
class SharedWork:
    """What trials need not do again."""

    programs: dict[Hashable, TrainProgram] = field(default_factory=dict)
    """By ``compile_key``."""
    starts: dict[tuple[Hashable, ...], Evaluation] = field(default_factory=dict)
    """Held-out losses before the first step, by the weights that they are of."""


def run_sweep(sweep: SweepConfig, worker: int = 1, workers: int = 1) -> Outcome:
    """Run what is left of ``worker``'s share, then what others have not taken or have lost.

    Returns once every trial has ended, or after a signal. Trials that diverged stay so; failed
    ones are tried again. Raises UserError for a mistake that is found before a trial's first step.
    """
    check_writable(sweep.output)
    chains = left = make_chains(sweep)
    board = SweepProgress(sweep, [trial for chain in chains for trial in chain], workers)
    for trial in board.trials:
        _require_same(trial)
    name, shared = f"worker {worker}/{workers}", SharedWork()
    tried: set[str] = set()
    while left := [chain for chain in left if not _ended(chain, tried)]:
        own = [chain for chain in left if chains.index(chain) % workers == worker - 1]
        # Others' from the end, where they come last themselves.
        free = [chain for chain in own or left[::-1] if not lease_owner(_claim(sweep, chain))]
        if not free:
            board.waiting({lease_owner(_claim(sweep, chain)) for chain in left})
            time.sleep(WAIT_SECONDS)
            continue
        with hold_lease(_claim(sweep, free[0]), name) as mine:
            if mine and (outcome := _run_chain(free[0], shared, board)) is not Outcome.FINISHED:
                return outcome
        if mine:
            tried.add(free[0][0].name)
            if not sweep.keep_checkpoints and _ended(free[0], set()):
                _drop_checkpoints(free[0])
    _check_compilations(shared)
    write_results(sweep, board.trials)
    return Outcome.FINISHED


def _require_same(trial: Trial) -> None:
    """Refuse to count a trial that ended with another config than it would be run with now."""
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
            f"{trial.config.output} has ended, but not as this sweep would train it: {error} Give "
            "the sweep another output, or delete that folder."
        ) from None


def _run_chain(chain: BudgetChain, shared: SharedWork, board: SweepProgress) -> Outcome:
    for trial in chain:
        note = read_status(trial)
        if note and note.status != "failed":
            continue
        before = read_status(trial.parent) if trial.parent else None
        if before and before.status != "done":
            write_status(trial, TrialStatus(before.status, f"as {trial.parent.name} did"))
            board.ended(trial)
            continue
        outcome = _run_trial(trial, shared, board)
        if outcome is not Outcome.FINISHED:
            return outcome
        board.ended(trial)
    return Outcome.FINISHED


def _run_trial(trial: Trial, shared: SharedWork, board: SweepProgress) -> Outcome:
    """Train it and note how it ended; its own words go to ``log.txt`` in its folder."""
    config, start = trial.config, time.monotonic()
    part = compile_key(config)
    with board.listening(trial):
        # Mistakes found here are of the sweep, not of the trial: they end it before any step.
        run = build_run(config, make_mesh(config.mesh), shared.programs.get(part))
        shared.programs[part] = run.program
        trunk = BranchPoint(trial.parent.config.output, trial.first_step) if trial.parent else None
        status, reason = "done", ""
        try:
            outcome = fit(run, trunk=trunk, at_start=_known_start(trial, run, shared))
        except DivergedError as error:
            status, reason, outcome = "diverged", str(error), Outcome.FINISHED
        except Exception as error:
            # Whatever it was, the other trials do not share it.
            traceback.print_exc()
            status, reason, outcome = "failed", f"{type(error).__name__}: {error}", Outcome.FINISHED
    if outcome is Outcome.FINISHED:
        times = time.monotonic() - start, step_seconds(trial), evaluation_seconds(trial)
        write_status(trial, TrialStatus(status, reason, run.tokenizer.fingerprint, *times))
    return outcome


def _known_start(trial: Trial, run: Run, shared: SharedWork) -> Evaluation | None:
    """Held-out losses of the weights that it starts from, measured once."""
    if trial.parent or not run.heldout:
        return None
    weights = initial_state_key(trial)
    if weights not in shared.starts:
        with jax.set_mesh(run.program.mesh):
            shared.starts[weights] = evaluate(run, run.start())
    return shared.starts[weights]


def _ended(chain: BudgetChain, tried: set[str]) -> bool:
    """Nothing is left to do of it: a failed trial is tried once by each call of the command."""
    notes = [read_status(trial) for trial in chain]
    if None in notes:
        return False
    return all(note.status != "failed" for note in notes) or chain[0].name in tried


def _claim(sweep: SweepConfig, chain: BudgetChain) -> epath.Path:
    return epath.Path(sweep.output) / "claims" / f"{chain[0].name}.json"


def _drop_checkpoints(chain: BudgetChain) -> None:
    for trial in chain:
        folder = epath.Path(trial.config.output) / CHECKPOINTS_FOLDER
        if folder.exists():
            folder.rmtree()


def _check_compilations(shared: SharedWork) -> None:
    for program in shared.programs.values():
        count = program.step._cache_size()
        assert count <= 1, f"a step was compiled {count} times for one size and batch shape"
