"""Saving and restoring a run: Orbax writes the arrays, a manifest seals them.

In a run's checkpoint folder: ``STEP/`` (Orbax: a nested dict of arrays that does not know Flax,
and ``about``, which says what they are) and ``STEP.manifest-*.json`` (``manifest.py``). The
manifest is written last, so what has none was interrupted: it is never restored, and the next
save removes it.
"""

import contextlib
import logging
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
from llama_cpt.runtime.literal_paths import LiteralPath, validate_run_folder
from llama_cpt.runtime.retry import is_storage_error, is_transient
from llama_cpt.runtime.storage import check_reachable

CHECKPOINTS_FOLDER = "checkpoints"
"""Where a run keeps its checkpoints, below its output folder."""

# Orbax logs the traceback of what it raises; here that becomes one line.
logging.getLogger("absl").addFilter(
    lambda record: not ("orbax" in record.pathname and record.levelno >= logging.ERROR)
)

SAVE_TIMEOUT_SECONDS = 3600
"""How long processes wait for each other's share of a save; Orbax's 600 s is short for a disk."""

_LEAVE_SECONDS = 60.0


_MERGED_FILES = ("manifest.ocdbt", "_METADATA", "_CHECKPOINT_METADATA")
"""Files that Orbax writes when it merges the parts of all processes."""


class _LiteralHandler(ocp.BasePyTreeCheckpointHandler):
    """Orbax's handler, which globs for the files of all processes, in a literal folder."""

    def finalize(self, directory: epath.Path) -> None:
        """Merge the parts of all processes."""
        super().finalize(LiteralPath(directory))

    def restore(self, directory: epath.Path, *args: Any, **named: Any) -> Any:
        """Read arrays."""
        return super().restore(LiteralPath(directory), *args, **named)


def orbax_handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler of all checkpoints here, for a folder of any name."""
    # Compression would cost seven times the time for a tenth of the size of float weights.
    implementation = _LiteralHandler(use_compression=False)
    return ocp.PyTreeCheckpointHandler(use_compression=False, handler_impl=implementation)


class CheckpointManager:
    """The checkpoints of one run, in ``folder`` (local or ``gs://``); the newest ``keep`` stay.

    So does an older one that is healthy if those may not be (``Retention``).

    All processes make the same calls in the same order. One run at a time writes to a folder.
    """

    def __init__(self, folder: str, keep: int = 1) -> None:
        validate_run_folder(folder)
        place = epath.Path(folder).expanduser()
        # Orbax takes absolute paths alone; absolute() would take gs:// for a folder's name.
        self.folder = place if "://" in folder else place.absolute()
        self.retention = Retention(self.folder, keep)
        self._orbax = ocp.AsyncCheckpointer(orbax_handler(), timeout_secs=SAVE_TIMEOUT_SECONDS)
        self._damaged: set[int] = set()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, step: int, state: Any, about: dict[str, Any]) -> None:
        """Copy ``state`` (a pytree of arrays) to the host, then write it in the background.

        ``about`` is plain JSON: rows consumed, resolved config, fingerprints. Waits for the save
        before this one. A step that is saved already is left as it is. Raises SaveError where
        this save or the one before fails, and DivergedError if ``state`` is not finite; checkpoints
        saved earlier are not touched.
        """
        self.wait()
        if broadcast_from_primary(int(step in self.steps()), "step saved already"):
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
        self._raise_agreed("checkpoint folder prepared")
        try:
            self._orbax.save(
                self.folder / str(step),
                args=ocp.args.PyTreeSave(arrays),
                custom_metadata=about,
            )
        except Exception as error:
            self._fail(step, error)
            self._raise()
        self._thread = threading.Thread(target=self._finish, args=(step,), name="seal checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return once the save under way is complete and sealed; raise SaveError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._raise_alone()
            self._raise_agreed("checkpoint sealed")
            self._prune()
            allgather_strings("", "old checkpoints removed")

    @property
    def failed(self) -> bool:
        """Whether the save in the background has failed here; ``wait`` tells all processes.

        Raises SaveError at once where the other processes cannot be told: they wait for this one's
        share, inside Orbax.
        """
        self._raise_alone()
        return self._failure is not None

    def steps(self) -> list[int]:
        """Steps that can be restored as far as is known without reading them, ascending."""
        return [s for s in manifest.committed_steps(self.folder) if s not in self._damaged]

    def standing(self) -> str:
        """A sentence that names the newest checkpoint, after the save under way has ended."""
        self._leave()
        if not (steps := self.steps()):
            return "No checkpoint was saved before."
        return f"The checkpoint of step {steps[-1]} stands: the run resumes from it."

    def latest_verified(self) -> int | None:
        """The newest step of which every file has the size and digest of its manifest.

        A damaged checkpoint is named on stderr and the one before is tried. None where nothing
        was ever saved. Raises UserError where checkpoints exist and all are damaged, or all have
        lost their manifests.
        """
        self._name_unsealed()
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
                f"{self.folder}: every checkpoint is damaged {sorted(self._damaged)}; put one "
                "back from a copy, or name another output folder to start again."
            )
        if broadcast_from_primary(
            int(bool(message := manifest.unverifiable(self.folder))), "manifests lost"
        ):
            raise UserError(message or f"{self.folder}: every checkpoint has lost its manifest.")
        return None

    def is_verified(self, step: int) -> bool:
        """Compare every file of ``step`` with the manifest; a bad one is named on stderr."""
        path = self.folder / str(step)
        found = find_damage(path, process_index(), process_count())
        if found:
            warn_once(f"checkpoint {step} is damaged: {found}")
        whole = all_processes_agree(
            found is None, "checkpoint verified", seconds=SAVE_TIMEOUT_SECONDS
        )
        # Manifests written by earlier versions do not have the step; what they seal does.
        if whole and (noted := (self.metadata(step) or {}).get("step", step)) != step:
            warn_once(f"checkpoint {step} is damaged: {path} holds the state of step {noted}")
            whole = False
        if not whole:
            self._damaged.add(step)
        return whole

    def restore(self, step: int, abstract: Any) -> Any:
        """The state saved at ``step``, to the last bit, in the tree of ``abstract``.

        ``abstract``: a pytree like the one saved, of ShapeDtypeStructs (or arrays) with
        shardings; the mesh need not be the one saved from. Raises UserError where names, shapes
        or types differ. An array without sharding goes to the first device. Digests are not
        read: ``latest_verified`` has done so.
        """
        return self._restore(step, abstract, whole=True)

    def restore_trained(self, step: int, abstract: Any) -> Any:
        """``restore`` of the state's ``trained`` alone; ``abstract`` is like it."""
        return self._restore(step, {"trained": abstract}, whole=False)["trained"]

    def metadata(self, step: int) -> dict[str, Any]:
        """What ``save`` was given as ``about``."""
        return self._orbax.metadata(self.folder / str(step)).custom_metadata

    def close(self) -> None:
        """Wait, and end Orbax's threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _leave(self) -> None:
        """Let the save under way end, if it can without the others' word; they may not come."""
        if self._thread is not None:
            self._thread.join(_LEAVE_SECONDS)

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
            self._leave()

    def _restore(self, step: int, abstract: Any, *, whole: bool) -> Any:
        path = self.folder / str(step)
        item = jax.tree.map(_placed, state_dict.to_state_dict(abstract))
        saved = self._orbax.metadata(path).item_metadata.tree
        saved = saved if whole else {name: saved[name] for name in item if name in saved}
        state_dict.check_compatible(str(path), saved, item)
        arguments = ocp.args.PyTreeRestore(
            item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=not whole,
        )
        return state_dict.from_state_dict(self._orbax.restore(path, args=arguments), abstract)

    def _raise(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _raise_alone(self) -> None:
        if isinstance(self._failure, SaveError) and self._failure.local_only:
            self._raise()

    def _raise_agreed(self, purpose: str) -> None:
        """Raise on every process what has failed on any; none goes on before all are here."""
        told = ""
        if isinstance(self._failure, SaveError):
            told = f"{'passing' if self._failure.transient else 'lasting'} {self._failure}"
        elif self._failure is not None:
            self._raise()
        said = [
            one for one in allgather_strings(told, purpose, seconds=SAVE_TIMEOUT_SECONDS) if one
        ]
        self._failure, failure = None, self._failure
        if said:
            # Not before: the others were still reading what they seal.
            if is_primary():
                with contextlib.suppress(Exception):
                    manifest.discard_uncommitted(self.folder)
            passing = all(one.startswith("passing ") for one in said)
            raise SaveError(said[0].split(" ", 1)[1], passing=passing) from failure

    def _prepare(self, step: int) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if message := manifest.unverifiable(self.folder):
                self._failure = SaveError(message, passing=False)
                return
            manifest.discard_uncommitted(self.folder)
            if step in self._damaged:
                manifest.discard(self.folder, step)
            step_marks.put(self.folder, step, step_marks.SAVING)
        except Exception as error:
            if not is_storage_error(error):
                raise
            told = f"{self.folder}: cannot keep checkpoints here ({error})."
            self._failure = SaveError(told, passing=is_transient(error))

    def _finish(self, step: int) -> None:
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            self._fail(step, error)
            return
        try:
            path = self.folder / str(step)
            _require_merged(path)
            manifest.commit(path, process_index(), process_count())
            self._damaged.discard(step)
            self.retention.mark(step)
        except Exception as error:
            self._fail(step, error, agreed=True)
        else:
            self._prune()

    def _fail(self, step: int, error: Exception, *, agreed: bool = False) -> None:
        """Keep the failure for the main thread and remove what the save has left.

        Unless all processes come to be ``agreed`` about it, the others wait inside Orbax.
        """
        kept: list[int] = []
        # Orbax may still be writing other files; what is left then, the next save removes.
        with contextlib.suppress(Exception):
            if is_primary() and not agreed:
                manifest.discard(self.folder, step)
            kept = self.steps()
        if is_storage_error(error) or isinstance(error, RuntimeError | ValueError):
            failure = save_error(str(self.folder), step, error, self.retention.keep, kept)
            failure.local_only = process_count() > 1 and not agreed
            failure.__cause__ = error
            error = failure
        self._failure = error

    def _prune(self) -> None:
        """Drop damaged checkpoints and, of those fully sealed, what ``Retention`` does not keep.

        What cannot be removed is told, and tried again after the next save.
        """
        if not is_primary():
            return
        try:
            # One look: what others seal meanwhile is not known to be old.
            sealed = manifest.committed_steps(self.folder)
            for step in step_marks.marked(self.folder, step_marks.SAVING) & set(sealed):
                step_marks.remove(self.folder, step, step_marks.SAVING)
            whole = [step for step in sealed if step not in self._damaged]
            if kept := self.retention.kept(whole):
                for step in set(sealed) - set(kept):
                    manifest.discard(self.folder, step)
        except Exception as error:
            if not is_storage_error(error):
                raise
            print(f"warning: {self.folder}: old checkpoints stay ({error}).", file=sys.stderr)

    def _name_unsealed(self) -> None:
        if is_primary() and self.folder.exists():
            for path in manifest.uncommitted(self.folder):
                warn_once(
                    f"{path} has no complete manifest and is not used: its save was interrupted, "
                    "or the manifest was removed"
                )


def save_weights(folder: str, model: Any, about: dict[str, Any]) -> None:
    """Save ``model`` alone, as step 0 of a new run folder, and wait.

    Raises UserError if the folder holds checkpoints already or ``model`` is not finite.
    """
    with CheckpointManager(str(epath.Path(folder) / CHECKPOINTS_FOLDER)) as checkpoints:
        if checkpoints.steps():
            raise UserError(f"{folder} holds checkpoints already; name another folder.")
        try:
            checkpoints.save(0, {"trained": model}, about)
        except DivergedError as error:
            raise UserError(f"{error} Get the weights again from their source.") from error


def is_run_folder(folder: str) -> bool:
    """Whether ``folder``, local or ``gs://``, holds a folder of checkpoints."""
    check_reachable(folder)
    return (epath.Path(folder).expanduser() / CHECKPOINTS_FOLDER).exists()


def open_run(folder: str, step: int | None = None) -> tuple[CheckpointManager, int]:
    """The checkpoints of a run folder (or checkpoint folder) and a verified step among them."""
    place = epath.Path(folder)
    checkpoints = CheckpointManager(
        str(place / CHECKPOINTS_FOLDER if is_run_folder(folder) else place)
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


def _require_merged(checkpoint: epath.Path) -> None:
    """Raise FileNotFoundError if Orbax skipped the merge, which it only warns about."""
    for name in _MERGED_FILES:
        if not (checkpoint / name).exists():
            raise FileNotFoundError(f"Orbax did not write {checkpoint / name}")


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
