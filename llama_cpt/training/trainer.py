"""The training of a run: its services, its attempts and its end.

A resumed run equals an uninterrupted run bit for bit, for four reasons. A checkpoint contains
the whole state. Learning rates depend only on the step number, and rows and random draws depend
only on the row number. A run stops only between two steps or during an evaluation, which does not
change the state.
"""

from collections.abc import Callable, Generator, Sequence
import contextlib
from functools import partial
import logging
from typing import Any

from etils import epath
import jax

from llama_cpt.checkpoint.checkpoint import CheckpointManager
from llama_cpt.checkpoint.health import DivergedError
from llama_cpt.checkpoint.run_folder import CHECKPOINTS_FOLDER
from llama_cpt.config.fields import to_dict
from llama_cpt.config.loading import save_config
from llama_cpt.config.schema import TrainConfig
from llama_cpt.runtime.distributed import is_primary
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.host_memory import release_after_compilations
from llama_cpt.runtime.json_files import read_json_object
from llama_cpt.runtime.metrics import FILE, read_lines
from llama_cpt.runtime.output_folder import file_lock
from llama_cpt.runtime.wandb_run import WandbRun
from llama_cpt.training.attempt import Probe, Services, run_attempt
from llama_cpt.training.evaluation import Evaluation
from llama_cpt.training.evaluation_plan import seconds_per_evaluation
from llama_cpt.training.first_state import BranchPoint, FirstState, first_state
from llama_cpt.training.goodput import Goodput
from llama_cpt.training.resume import check_resume, missing_save
from llama_cpt.training.rollback import roll_back
from llama_cpt.training.run import Run
from llama_cpt.training.spikes import METADATA, RollbackRequest, SpikeMonitor
from llama_cpt.training.stop import (
    Outcome,
    PreemptionWatcher,
    StopConsensus,
    StopSignals,
)
from llama_cpt.training.trace import FOLDER as TRACES
from llama_cpt.training.trace import NO_STEPS, Trace
from llama_cpt.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


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
        project = config.wandb_project if is_primary() else ""
        with (
            contextlib.closing(trace),
            WandbRun(project, config.output, to_dict(config)) as wandb_run,
        ):
            consensus = StopConsensus(run.program.mesh)
            services = Services(
                checkpoints, clock, signals, consensus, watchdog, trace, probe, wandb_run
            )
            restart = partial(first_state, run, checkpoints, None, branch_point)
            origin = branch_point.step if branch_point else 0
            return _attempts(start, services, at_start, restart, origin)


def _attempts(
    start: FirstState,
    services: Services,
    at_start: Evaluation | None,
    restart: Callable[[], FirstState],
    origin: int,
) -> Outcome:
    """Train from ``start``, with rollbacks, to the end or a stop signal, and return the outcome.

    ``restart()`` returns the state of the newest checkpoint, and ``origin`` is the step without
    one.
    """
    config, clock = start.run.config, services.clock
    monitor = SpikeMonitor(config.spikes, config.global_batch_size, start.saved.get(METADATA))
    while True:
        try:
            return run_attempt(start, monitor, services, at_start)
        except RollbackRequest as request:
            spike = request.spike
        # The frames of the attempt, which contain its state, no longer exist.
        with clock.measure("restore"):
            start, monitor = roll_back(
                config, spike, monitor, services.checkpoints, clock, restart, origin
            )
        # Pending votes refer to the ended attempt.
        services.consensus.reset()


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
