"""Saving and restoring checkpoints.

The checkpoint folder of a run contains a folder ``STEP/`` and files ``STEP.manifest-*.json`` per
checkpoint. Orbax writes ``STEP/``, which contains a nested dict of arrays, without Flax types, and
JSON metadata. The manifest (``manifest.py``) is written last. A checkpoint with a complete manifest
is called committed, and only committed checkpoints are restored. If a save was interrupted, the
next save removes the files of the interrupted save.
"""

import contextlib
import logging
import os
import threading
from types import TracebackType
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from llama_cpt.checkpoint import manifest, state_dict, step_marks, verification
from llama_cpt.checkpoint.errors import SaveError, save_error
from llama_cpt.checkpoint.health import DivergedError, non_finite
from llama_cpt.checkpoint.orbax_handler import orbax_handler, require_merged
from llama_cpt.checkpoint.retention import Retention
from llama_cpt.runtime.distributed import (
    all_processes_agree,
    allgather_strings,
    broadcast_from_primary,
    is_primary,
    process_count,
    process_index,
)
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import validate_run_folder
from llama_cpt.runtime.logs import warn_once
from llama_cpt.runtime.retry import is_storage_error, is_transient

logger = logging.getLogger(__name__)

SAVE_TIMEOUT_SECONDS = 3600
"""Seconds to wait until the other processes have written their parts of a checkpoint.

Orbax's default, 600 s, is too short for slow disks.
"""

_TRANSIENT = "transient "
"""Prefix that marks a transient error in the messages that processes send each other."""

_EXIT_SECONDS = 60.0
"""Maximum seconds to wait for the save in progress when an error ends this process."""


class CheckpointManager:
    """The checkpoints of one run in ``folder``, a local path or a ``gs://`` URL.

    The newest ``keep`` checkpoints are kept. An older healthy checkpoint can be kept in addition
    (see ``Retention``). All processes must call the same methods in the same order. Only one run at
    a time can write to a folder.
    """

    def __init__(self, folder: str, keep: int = 1) -> None:
        validate_run_folder(folder)
        path = epath.Path(folder).expanduser()
        # Orbax requires absolute paths, and absolute() would treat gs:// as a relative folder.
        self.folder = path if "://" in folder else path.absolute()
        if "://" not in folder and os.path.lexists(self.folder) and not self.folder.is_dir():
            raise UserError(
                f"{self.folder}: is not a folder, but checkpoints are stored in a folder with this "
                "name; move the file away."
            )
        self.retention = Retention(self.folder, keep)
        self._has_saved = False
        self._orbax = ocp.AsyncCheckpointer(orbax_handler(), timeout_secs=SAVE_TIMEOUT_SECONDS)
        self._damaged: set[int] = set()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Copy ``state``, a pytree of arrays, to the host, and save the copy in the background.

        ``metadata`` is a JSON dict that ``metadata(step)`` returns later. Waits for the previous
        save. Does nothing if ``step`` is already saved. Raises SaveError if the previous save
        failed or this save cannot be started, and DivergedError if ``state`` contains NaN or
        infinity. These errors leave earlier checkpoints unchanged.
        """
        self.wait()
        if self._has_saved:
            # The last checkpoint can have been found healthy after its save ended.
            self._prune()
        if broadcast_from_primary(int(step in self.steps()), "step already saved"):
            return
        arrays = state_dict.to_state_dict(state)
        if bad := non_finite(arrays):
            more = f" and {len(bad) - 1} more arrays" if len(bad) > 1 else ""
            raise DivergedError(
                f"{self.folder}: the checkpoint of step {step} was not saved: {bad[0]}{more} "
                "contained NaN or infinity."
            )
        if is_primary():
            self._prepare(step)
        self._raise_on_all("checkpoint folder prepared")
        try:
            # This call returns when the arrays are copied to the host. After that, a step can
            # donate their buffers.
            self._orbax.save(
                self.folder / str(step),
                args=ocp.args.PyTreeSave(arrays),
                custom_metadata=metadata,
            )
        except Exception as error:
            self._record_failure(step, error)
            self._raise_failure()
        self._has_saved = True
        self._thread = threading.Thread(target=self._finish, args=(step,), name="commit checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until all processes have committed the save in progress, and remove old checkpoints.

        Raises SaveError on all processes if the save failed on one of them.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._raise_if_local()
            self._raise_on_all("checkpoint committed")
            self._prune()
            allgather_strings("", "old checkpoints removed")

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps than ``step``. No save may be in progress."""
        if is_primary():
            manifest.discard_after(self.folder, step)
        allgather_strings("", "later checkpoints removed")
        self.retention.forget_after(step)

    @property
    def failed(self) -> bool:
        """True if the save in the background failed on this process.

        A call of ``wait`` informs the other processes. Raises SaveError if they cannot be informed
        because they are waiting inside Orbax for this process's part of the checkpoint.
        """
        self._raise_if_local()
        return self._failure is not None

    def steps(self) -> list[int]:
        """Return the steps of committed checkpoints that are not known to be damaged, ascending.

        The files of the checkpoints are not verified.
        """
        return [s for s in manifest.committed_steps(self.folder) if s not in self._damaged]

    def standing(self) -> str:
        """Wait for the save in progress, and return a sentence that names the newest checkpoint."""
        self._join()
        if not (steps := self.steps()):
            return "No checkpoint was saved before."
        return f"The checkpoint of step {steps[-1]} is valid, and the run can resume from it."

    def latest_verified(self) -> int | None:
        """Return the step of the newest checkpoint whose files agree with its manifest.

        The sizes and digests of all files are verified. If a checkpoint is damaged, a warning is
        logged and the previous checkpoint is verified. Returns None if the folder contains no
        checkpoint. Raises UserError if all checkpoints are damaged or have lost their manifests.
        """
        self._warn_uncommitted()
        # The primary process chooses, because other processes can see a shared folder with a delay.
        step = broadcast_from_primary(max(self.steps(), default=-1), "newest checkpoint")
        while step >= 0:
            if self.is_verified(step):
                return step
            before = max((s for s in self.steps() if s < step), default=-1)
            step = broadcast_from_primary(before, "checkpoint before")
            if step >= 0 and is_primary():
                warn_once(logger, f"falling back to the checkpoint of step {step} in {self.folder}")
        if self._damaged:
            raise UserError(
                f"{self.folder}: every checkpoint is damaged (steps: {sorted(self._damaged)}); "
                "restore one from a copy, or set a different output folder to start a new run."
            )
        if broadcast_from_primary(
            int(bool(message := manifest.unverifiable(self.folder))), "manifests lost"
        ):
            raise UserError(message or f"{self.folder}: every checkpoint has lost its manifest.")
        return None

    def is_verified(self, step: int) -> bool:
        """Return whether all files of the checkpoint of ``step`` agree with its manifest.

        Damage is logged as a warning. All processes must call this method. Each of them verifies a
        part of the files, and all get the same result.
        """
        path = self.folder / str(step)
        damage = verification.find_damage(path, process_index(), process_count())
        if damage:
            warn_once(logger, f"checkpoint {step} is damaged: {damage}")
        intact = all_processes_agree(
            damage is None, "checkpoint verified", seconds=SAVE_TIMEOUT_SECONDS
        )
        # Manifests of earlier versions do not contain the step, but the metadata does.
        if intact and (recorded := (self.metadata(step) or {}).get("step", step)) != step:
            warn_once(
                logger, f"checkpoint {step} is damaged: {path} holds the state of step {recorded}"
            )
            intact = False
        if not intact:
            self._damaged.add(step)
        return intact

    def restore(self, step: int, abstract: Any) -> Any:
        """Return the state that was saved at ``step``, with the tree structure of ``abstract``.

        ``abstract`` is a pytree of ShapeDtypeStructs or arrays with shardings. The mesh can differ
        from the mesh of the save. Leaves without a sharding are restored to the first device.
        Raises UserError if ``abstract`` and the checkpoint differ in the name, shape or type of an
        array. Digests are not verified; call ``latest_verified`` or ``is_verified`` first.
        """
        return self._restore(step, abstract, partial=False)

    def restore_trained(self, step: int, abstract: Any) -> Any:
        """Return only ``TrainState.trained``, as saved at ``step``, as a pytree like ``abstract``.

        Raises UserError as ``restore`` does.
        """
        return self._restore(step, {"trained": abstract}, partial=True)["trained"]

    def metadata(self, step: int) -> dict[str, Any]:
        """Return the ``metadata`` with which ``save`` was called for ``step``."""
        return self._orbax.metadata(self.folder / str(step)).custom_metadata

    def close(self) -> None:
        """Wait for the save in progress as ``wait`` does, and stop Orbax's threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _join(self) -> None:
        """Wait for the save in progress for at most ``_EXIT_SECONDS``.

        The wait is limited, because the other processes might never commit their parts.
        """
        if self._thread is not None:
            self._thread.join(_EXIT_SECONDS)

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None or process_count() == 1:
            self.close()
        else:
            self._join()

    def _restore(self, step: int, abstract: Any, *, partial: bool) -> Any:
        path = self.folder / str(step)
        item = jax.tree.map(_with_sharding, state_dict.to_state_dict(abstract))
        description = self._orbax.metadata(path).item_metadata
        assert description is not None
        saved = description.tree
        if partial:
            saved = {name: saved[name] for name in item if name in saved}
        state_dict.check_compatible(str(path), saved, item)
        arguments = ocp.args.PyTreeRestore(
            item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=partial,
        )
        return state_dict.from_state_dict(self._orbax.restore(path, args=arguments), abstract)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _raise_if_local(self) -> None:
        if isinstance(self._failure, SaveError) and self._failure.local_only:
            self._raise_failure()

    def _raise_on_all(self, purpose: str) -> None:
        """Wait for all processes. If one has failed, raise the first failure on all of them."""
        message = ""
        if isinstance(self._failure, SaveError):
            message = f"{_TRANSIENT if self._failure.transient else 'permanent '}{self._failure}"
        elif self._failure is not None:
            self._raise_failure()
        gathered = allgather_strings(message, purpose, seconds=SAVE_TIMEOUT_SECONDS)
        failures = [text for text in gathered if text]
        self._failure, failure = None, self._failure
        if failures:
            # At this point, no process is reading files for a commit.
            if is_primary():
                with contextlib.suppress(Exception):
                    manifest.discard_uncommitted(self.folder)
            transient = all(text.startswith(_TRANSIENT) for text in failures)
            raise SaveError(failures[0].split(" ", 1)[1], transient=transient) from failure

    def _prepare(self, step: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if message := manifest.unverifiable(self.folder):
                self._failure = SaveError(message, transient=False)
                return
            manifest.discard_uncommitted(self.folder)
            if step in self._damaged:
                manifest.discard(self.folder, step)
            step_marks.put(self.folder, step, step_marks.SAVING)
        except Exception as error:
            if not is_storage_error(error):
                raise
            message = f"{self.folder}: checkpoints cannot be written here ({error})."
            self._failure = SaveError(message, transient=is_transient(error))

    def _finish(self, step: int) -> None:
        # This method runs in the background thread. The processes agree later, in ``wait``, because
        # gathers from two threads could run in a different order on each process.
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            self._record_failure(step, error)
            return
        try:
            path = self.folder / str(step)
            require_merged(path)
            manifest.commit(path, process_index(), process_count())
            self._damaged.discard(step)
            self.retention.mark(step)
        except Exception as error:
            self._record_failure(step, error, collective=True)
        else:
            self._prune()

    def _record_failure(self, step: int, error: Exception, *, collective: bool = False) -> None:
        """Store the failure for the main thread and remove the files of the failed save.

        ``collective`` is True if all processes will reach ``_raise_on_all``. If it is False, the
        other processes wait inside Orbax, and the failure cannot be communicated to them.
        """
        kept: list[int] = []
        # Orbax can still be writing files. The next save removes the remaining files.
        with contextlib.suppress(Exception):
            if is_primary() and not collective:
                manifest.discard(self.folder, step)
            kept = self.steps()
        if is_storage_error(error) or isinstance(error, RuntimeError | ValueError):
            failure = save_error(str(self.folder), step, error, self.retention.keep, kept)
            failure.local_only = process_count() > 1 and not collective
            failure.__cause__ = error
            error = failure
        self._failure = error

    def _prune(self) -> None:
        """Remove damaged checkpoints and those that ``Retention`` does not keep.

        Logs a warning if a removal fails. The next save tries the removal again.
        """
        if not is_primary():
            return
        try:
            # The steps are listed once, because a checkpoint that other processes commit meanwhile
            # must not count as old.
            committed = manifest.committed_steps(self.folder)
            for step in step_marks.marked(self.folder, step_marks.SAVING) & set(committed):
                step_marks.remove(self.folder, step, step_marks.SAVING)
            intact = [step for step in committed if step not in self._damaged]
            if kept := self.retention.kept(intact):
                for step in set(committed) - set(kept):
                    manifest.discard(self.folder, step)
        except Exception as error:
            if not is_storage_error(error):
                raise
            logger.warning("%s: old checkpoints were not removed (%s).", self.folder, error)

    def _warn_uncommitted(self) -> None:
        if is_primary() and self.folder.exists():
            for path in manifest.uncommitted(self.folder):
                warn_once(
                    logger,
                    f"{path} has no complete manifest and is ignored. The save was interrupted, or "
                    "the manifest was removed.",
                )


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
