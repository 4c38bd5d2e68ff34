"""A sweep's trials run: one compiled step a size, an end that is noted whatever it is."""

from collections.abc import Hashable
from dataclasses import dataclass, field
import json
import time
import traceback

from etils import epath
import jax

from llama_cpt.checkpoint.checkpoint import FOLDER
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.config.schema import TrainConfig
from llama_cpt.config.sweep import SweepConfig
from llama_cpt.parallel.mesh import make_mesh
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.output_folder import require_writable
from llama_cpt.sweeps.leases import claimed, holder
from llama_cpt.sweeps.results import (
    Note,
    evaluation_seconds,
    read_note,
    started_from,
    step_seconds,
    write_note,
    write_results,
)
from llama_cpt.sweeps.status import Board
from llama_cpt.sweeps.trials import Chain, Trial, chains_of
from llama_cpt.training.program import Program, compiled_part
from llama_cpt.training.resume import check_resume
from llama_cpt.training.run import Run, build
from llama_cpt.training.stop import Outcome
from llama_cpt.training.trainer import Evaluation, Trunk, evaluate, fit

WAIT_SECONDS = 20.0
"""Between looks at what other workers hold."""


@dataclass
class Shared:
    """What trials need not do again."""

    programs: dict[TrainConfig, Program] = field(default_factory=dict)
    """By ``compiled_part``."""
    starts: dict[tuple[Hashable, ...], Evaluation] = field(default_factory=dict)
    """Held-out losses before the first step, by the weights that they are of."""


def run_sweep(sweep: SweepConfig, worker: int = 1, workers: int = 1) -> Outcome:
    """Run what is left of ``worker``'s share, then what others have not taken or have lost.

    Returns once every trial has ended, or after a signal. Trials that diverged stay so; failed
    ones are tried again. Raises UserError for a mistake that is found before a trial's first step.
    """
    require_writable(sweep.output)
    chains = left = chains_of(sweep)
    board = Board(sweep, [trial for chain in chains for trial in chain], workers)
    for trial in board.trials:
        _require_same(trial)
    name, shared = f"worker {worker}/{workers}", Shared()
    tried: set[str] = set()
    while left := [chain for chain in left if not _ended(chain, tried)]:
        own = [chain for chain in left if chains.index(chain) % workers == worker - 1]
        # Others' from the end, where they come last themselves.
        free = [chain for chain in own or left[::-1] if not holder(_claim(sweep, chain))]
        if not free:
            board.waiting({holder(_claim(sweep, chain)) for chain in left})
            time.sleep(WAIT_SECONDS)
            continue
        with claimed(_claim(sweep, free[0]), name) as mine:
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
    if read_note(trial) is None or not file.exists():
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


def _run_chain(chain: Chain, shared: Shared, board: Board) -> Outcome:
    for trial in chain:
        note = read_note(trial)
        if note and note.status != "failed":
            continue
        before = read_note(trial.trunk) if trial.trunk else None
        if before and before.status != "done":
            write_note(trial, Note(before.status, f"as {trial.trunk.name} did"))
            board.ended(trial)
            continue
        outcome = _run_trial(trial, shared, board)
        if outcome is not Outcome.FINISHED:
            return outcome
        board.ended(trial)
    return Outcome.FINISHED


def _run_trial(trial: Trial, shared: Shared, board: Board) -> Outcome:
    """Train it and note how it ended; its own words go to ``log.txt`` in its folder."""
    config, start = trial.config, time.monotonic()
    part = compiled_part(config)
    with board.listening(trial):
        # Mistakes found here are of the sweep, not of the trial: they end it before any step.
        run = build(config, make_mesh(config.mesh), shared.programs.get(part))
        shared.programs[part] = run.program
        trunk = Trunk(trial.trunk.config.output, trial.first_step) if trial.trunk else None
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
        write_note(trial, Note(status, reason, run.tokenizer.fingerprint, *times))
    return outcome


def _known_start(trial: Trial, run: Run, shared: Shared) -> Evaluation | None:
    """Held-out losses of the weights that it starts from, measured once."""
    if trial.trunk or not run.heldout:
        return None
    weights = started_from(trial)
    if weights not in shared.starts:
        with jax.set_mesh(run.program.mesh):
            shared.starts[weights] = evaluate(run, run.start())
    return shared.starts[weights]


def _ended(chain: Chain, tried: set[str]) -> bool:
    """Nothing is left to do of it: a failed trial is tried once by each call of the command."""
    notes = [read_note(trial) for trial in chain]
    if None in notes:
        return False
    return all(note.status != "failed" for note in notes) or chain[0].name in tried


def _claim(sweep: SweepConfig, chain: Chain) -> epath.Path:
    return epath.Path(sweep.output) / "claims" / f"{chain[0].name}.json"


def _drop_checkpoints(chain: Chain) -> None:
    for trial in chain:
        folder = epath.Path(trial.config.output) / FOLDER
        if folder.exists():
            folder.rmtree()


def _check_compilations(shared: Shared) -> None:
    for program in shared.programs.values():
        count = program.step._cache_size()
        assert count <= 1, f"a step was compiled {count} times for one size and batch shape"
