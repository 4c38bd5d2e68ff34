"""A run of Weights & Biases that receives the metrics of a training run."""

from collections.abc import Callable, Mapping
import importlib.util
import logging
import os
import secrets
import tempfile
from typing import Any, TypeVar

from etils import epath

from llama_cpt.runtime.atomic import write_atomic
from llama_cpt.runtime.errors import UserError, first_line

logger = logging.getLogger(__name__)

ID_FILE = "wandb_id.txt"
"""Name of the file in the output folder with the id of the run in Weights & Biases."""
_KEY = "WANDB_API_KEY"
_WAIT_SECONDS = 30.0
_Result = TypeVar("_Result")


def check_wandb(project: str) -> None:
    """Raise UserError if ``project`` is set, but metrics cannot be sent to Weights & Biases.

    The package ``wandb`` must be installed. If it is online, a key must be configured. Does nothing
    if ``project`` is empty.
    """
    if not project:
        return
    # The folder ``wandb`` in the working folder is a namespace package, which has no origin.
    spec = importlib.util.find_spec("wandb")
    if spec is None or not spec.origin:
        raise UserError(
            f"wandb_project={project}: the package wandb is not installed; run `pip install "
            "wandb`, or remove wandb_project."
        )
    if _guarded("be configured", _lacks_key):
        raise UserError(
            f"wandb_project={project}: no key of Weights & Biases is configured; run `wandb "
            f"login`, set {_KEY}, set WANDB_MODE=offline, or remove wandb_project."
        )


class WandbRun:
    """Context manager for a run in the project ``project`` of Weights & Biases.

    If ``project`` is empty, nothing is sent. The folder ``output`` of the training run contains the
    id, so that a resumed training run continues the same run. ``config`` is the config to show.
    If Weights & Biases fails, a warning is logged, and the training run continues without it.
    """

    def __init__(self, project: str, output: str, config: Mapping[str, Any]) -> None:
        self._run: Any = None
        if project:
            self._run = _guarded("start", lambda: _start(project, epath.Path(output), config))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send ``values`` after ``step`` steps; ``values`` maps metric names to finite values."""
        run = self._run
        if run is not None and not _guarded("log", lambda: _log(run, step, values)):
            self._run = None

    def __enter__(self) -> "WandbRun":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Mark the run as finished or failed, and wait for uploads for a limited time."""
        run, self._run = self._run, None
        if run is not None:
            _guarded("finish", lambda: run.finish(exit_code=int(kind is not None)))


def _lacks_key() -> bool:
    import wandb  # pyright: ignore[reportMissingImports]

    online = wandb.setup().settings.mode in ("online", "shared")
    return online and not wandb.login(prompt=False, verify=False)


def _start(project: str, output: epath.Path, config: Mapping[str, Any]) -> Any:
    import wandb  # pyright: ignore[reportMissingImports]

    file = output / ID_FILE
    if not file.exists():
        write_atomic(file, secrets.token_hex(8))
    remote = "://" in str(output)
    run = wandb.init(
        project=project,
        name=output.name,
        id=file.read_text().strip(),
        resume="allow",
        config=dict(config),
        dir=tempfile.mkdtemp(prefix="wandb-") if remote else str(output),
        settings=wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            finish_timeout=_WAIT_SECONDS,
            init_timeout=_WAIT_SECONDS,
            reinit="create_new",
            silent=True,
        ),
    )
    # A run that resumes or rolls back repeats steps, and the service accepts only increasing steps.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    logger.info("Weights & Biases: %s", run.url or f"offline run in {run.dir}")
    return run


def _log(run: Any, step: int, values: Mapping[str, float]) -> bool:
    run.log({"step": step, **values})
    return True


def _guarded(action: str, call: Callable[[], _Result]) -> _Result | None:
    """Return the result of ``call``, or log a warning and return None if it fails."""
    try:
        return call()
    except Exception as error:
        text = f"{type(error).__name__}: {first_line(error)}"
        if key := os.environ.get(_KEY):
            text = text.replace(key, "***")
        logger.warning(
            "Weights & Biases cannot %s (%s); training continues without it.", action, text
        )
        return None
