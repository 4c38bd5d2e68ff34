"""Saving and restoring of a run: Orbax writes the arrays, a manifest commits them.

The checkpoint folder of a run holds ``STEP/``, written by Orbax (a nested dict of arrays without
Flax types, and JSON metadata that describes them), and ``STEP.manifest-*.json`` (``manifest.py``).
The manifest is written last. A step without one was interrupted: it is never restored, and the
next save removes it.
"""

import contextlib
import sys
import threading
from types import TracebackType
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from llama_cpt.checkpoint import manifest, state_dict, step_marks
from llama_cpt.checkpoint.errors import SaveError, save_error
from llama_cpt.checkpoint.health import DivergedError, non_finite
from llama_cpt.checkpoint.orbax_handler import orbax_handler, require_merged
from llama_cpt.checkpoint.retention import Retention
from llama_cpt.checkpoint.verification import find_damage, warn_once
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
from llama_cpt.runtime.retry import is_storage_error, is_transient
from llama_cpt.runtime.storage import check_reachable

CHECKPOINTS_FOLDER = "checkpoints"
"""Name of the folder of checkpoints in a run's output folder."""

SAVE_TIMEOUT_SECONDS = 3600
"""Maximum wait for the other processes' share of a save. Orbax's 600 s is too short for disks."""

_TRANSIENT = "transient "
"""Prefix of an error message between processes if the same save may succeed later."""

_EXIT_SECONDS = 60.0
"""Maximum wait for the save in progress when a process ends alone."""


class CheckpointManager:
    """The checkpoints of one run in ``folder``, local or ``gs://``.

    The newest ``keep`` stay, and an older healthy one if those may be unhealthy (``Retention``).
    All processes must make the same calls in the same order. Only one run at a time may write to a
    folder.
    """

    def __init__(self, folder: str, keep: int = 1) -> None:
        validate_run_folder(folder)
        path = epath.Path(folder).expanduser()
        # Orbax requires absolute paths, and absolute() would treat gs:// as a relative folder.
        self.folder = path if "://" in folder else path.absolute()
        self.retention = Retention(self.folder, keep)
        self._orbax = ocp.AsyncCheckpointer(orbax_handler(), timeout_secs=SAVE_TIMEOUT_SECONDS)
        self._damaged: set[int] = set()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Copy ``state`` (a pytree of arrays) to the host, then write it in the background.

        ``metadata`` is plain JSON: rows consumed, resolved config, fingerprints. Waits for the
        previous save. Does nothing if ``step`` is already saved. Raises SaveError if this save or
        the previous one failed, and DivergedError if ``state`` is not finite; earlier checkpoints
        are not touched.
        """
        self.wait()
        if broadcast_from_primary(int(step in self.steps()), "step already saved"):
            return
        arrays = state_dict.to_state_dict(state)
        if bad := non_finite(arrays):
            more = f" and {len(bad) - 1} more arrays" if len(bad) > 1 else ""
            raise DivergedError(
                f"{self.folder}: the checkpoint of step {step} was not saved: {bad[0]}{more} "
                "held NaN or infinity."
            )
        if is_primary():
            self._prepare(step)
        self._raise_on_all("checkpoint folder prepared")
        try:
            # Returns once the arrays are copied to the host, so that a step may then donate them.
            self._orbax.save(
                self.folder / str(step),
                args=ocp.args.PyTreeSave(arrays),
                custom_metadata=metadata,
            )
        except Exception as error:
            self._record_failure(step, error)
            self._raise_failure()
        self._thread = threading.Thread(target=self._finish, args=(step,), name="commit checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the save in progress is committed; raise SaveError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._raise_if_local()
            self._raise_on_all("checkpoint committed")
            self._prune()
            allgather_strings("", "old checkpoints removed")

    @property
    def failed(self) -> bool:
        """Whether the save in the background failed on this process; ``wait`` informs the others.

        Raises SaveError at once if the other processes cannot be informed because they wait inside
        Orbax for this process's share.
        """
        self._raise_if_local()
        return self._failure is not None

    def steps(self) -> list[int]:
        """Return the committed steps not known to be damaged, ascending; reads no arrays."""
        return [s for s in manifest.committed_steps(self.folder) if s not in self._damaged]

    def standing(self) -> str:
        """Wait for the save in progress; return a sentence that names the newest checkpoint."""
        self._join()
        if not (steps := self.steps()):
            return "No checkpoint was saved before."
        return f"The checkpoint of step {steps[-1]} stands: the run resumes from it."

    def latest_verified(self) -> int | None:
        """Return the newest step whose files all have the sizes and digests in its manifest.

        Reports a damaged checkpoint on stderr and tries the one before it. Returns None if nothing
        was ever saved. Raises UserError if checkpoints exist and all are damaged or all have lost
        their manifests.
        """
        self._warn_uncommitted()
        # The primary chooses, because another process may see a shared folder with a delay.
        step = broadcast_from_primary(max(self.steps(), default=-1), "newest checkpoint")
        while step >= 0:
            if self.is_verified(step):
                return step
            before = max((s for s in self.steps() if s < step), default=-1)
            step = broadcast_from_primary(before, "checkpoint before")
            if step >= 0 and is_primary():
                warn_once(f"falling back to the checkpoint of step {step} in {self.folder}")
        if self._damaged:
            raise UserError(
                f"{self.folder}: every checkpoint is damaged {sorted(self._damaged)}; restore "
                "one from a copy, or name another output folder to start again."
            )
        if broadcast_from_primary(
            int(bool(message := manifest.unverifiable(self.folder))), "manifests lost"
        ):
            raise UserError(message or f"{self.folder}: every checkpoint has lost its manifest.")
        return None

    def is_verified(self, step: int) -> bool:
        """Return whether all files of ``step`` agree with the manifest; report damage on stderr."""
        path = self.folder / str(step)
        damage = find_damage(path, process_index(), process_count())
        if damage:
            warn_once(f"checkpoint {step} is damaged: {damage}")
        intact = all_processes_agree(
            damage is None, "checkpoint verified", seconds=SAVE_TIMEOUT_SECONDS
        )
        # Manifests of earlier versions do not record the step, but the metadata does.
        if intact and (recorded := (self.metadata(step) or {}).get("step", step)) != step:
            warn_once(f"checkpoint {step} is damaged: {path} holds the state of step {recorded}")
            intact = False
        if not intact:
            self._damaged.add(step)
        return intact

    def restore(self, step: int, abstract: Any) -> Any:
        """Return the exact state saved at ``step``, in the tree of ``abstract``.

        ``abstract`` is a pytree like the saved one, of ShapeDtypeStructs (or arrays) with
        shardings; the mesh may differ from that of the save. Arrays without sharding go to the
        first device. Raises UserError if names, shapes or types differ. Does not verify digests;
        call ``latest_verified`` or ``is_verified`` first.
        """
        return self._restore(step, abstract, partial=False)

    def restore_trained(self, step: int, abstract: Any) -> Any:
        """Return only the ``trained`` part of the state, in the tree of ``abstract``."""
        return self._restore(step, {"trained": abstract}, partial=True)["trained"]

    def metadata(self, step: int) -> dict[str, Any]:
        """Return the ``metadata`` that ``save`` was called with."""
        return self._orbax.metadata(self.folder / str(step)).custom_metadata

    def close(self) -> None:
        """Wait for the save in progress, and stop Orbax's threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _join(self) -> None:
        """Wait for the save in progress, within limits: other processes may never agree to it."""
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
        saved = self._orbax.metadata(path).item_metadata.tree
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
        """Wait for all processes; raise the first failure of any of them on every process."""
        message = ""
        if isinstance(self._failure, SaveError):
            message = f"{_TRANSIENT if self._failure.transient else 'permanent '}{self._failure}"
        elif self._failure is not None:
            self._raise_failure()
        gathered = allgather_strings(message, purpose, seconds=SAVE_TIMEOUT_SECONDS)
        failures = [text for text in gathered if text]
        self._failure, failure = None, self._failure
        if failures:
            # Only now have the other processes finished reading the files that they commit.
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
        # Runs in the background thread. Agreement of the processes is left to ``wait``, because
        # gathers from two threads could interleave in a different order on each process.
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

        ``collective`` means that all processes will reach ``_raise_on_all``. Otherwise the others
        wait inside Orbax, and the failure is local.
        """
        kept: list[int] = []
        # Orbax may still be writing other files. The next save removes what is left.
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
        """Remove damaged checkpoints and committed ones that ``Retention`` does not keep.

        Prints a warning if a removal fails; it is tried again after the next save.
        """
        if not is_primary():
            return
        try:
            # List the steps once: a step that others commit meanwhile must not count as old.
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
            print(f"warning: {self.folder}: old checkpoints stay ({error}).", file=sys.stderr)

    def _warn_uncommitted(self) -> None:
        if is_primary() and self.folder.exists():
            for path in manifest.uncommitted(self.folder):
                warn_once(
                    f"{path} has no complete manifest and is not used: its save was interrupted, "
                    "or the manifest was removed"
                )


def save_weights(folder: str, model: Any, metadata: dict[str, Any]) -> None:
    """Save ``model`` alone as step 0 of a new run folder, and wait.

    Raises UserError if the folder already holds checkpoints or ``model`` is not finite.
    """
    with CheckpointManager(str(epath.Path(folder) / CHECKPOINTS_FOLDER)) as checkpoints:
        if checkpoints.steps():
            raise UserError(f"{folder} holds checkpoints already; name another folder.")
        try:
            checkpoints.save(0, {"trained": model}, metadata)
        except DivergedError as error:
            raise UserError(f"{error} Get the weights again from their source.") from error


def is_run_folder(folder: str) -> bool:
    """Return whether ``folder``, local or ``gs://``, holds a folder of checkpoints."""
    check_reachable(folder)
    return (epath.Path(folder).expanduser() / CHECKPOINTS_FOLDER).exists()


def open_run(folder: str, step: int | None = None) -> tuple[CheckpointManager, int]:
    """Return the checkpoints of a run folder (or checkpoint folder) and a verified step.

    The step is ``step`` if given, else the newest intact one. Raises UserError if there is none.
    """
    path = epath.Path(folder)
    checkpoints = CheckpointManager(
        str(path / CHECKPOINTS_FOLDER if is_run_folder(folder) else path)
    )
    if step is None:
        step = checkpoints.latest_verified()
    elif step not in checkpoints.steps():
        raise UserError(f"{folder}: no checkpoint of step {step}; there are {checkpoints.steps()}.")
    elif not checkpoints.is_verified(step):
        raise UserError(f"{folder}: the checkpoint of step {step} is damaged.")
    if step is None:
        raise UserError(f"{folder} holds no checkpoint.")
    return checkpoints, step


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
