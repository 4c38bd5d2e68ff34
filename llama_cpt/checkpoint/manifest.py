"""Manifests, which contain the size and digest of each file of a checkpoint.

Orbax restores flipped bits without an error, and its own commit record does not prove that the
files are on disk. A manifest has N parts, ``STEP.manifest-00000-of-0000N.json`` and so on, one per
process. Each process computes the digests of every N-th file, regardless of which process wrote the
file, and writes one part. The checkpoint of step ``STEP`` is called committed when all N parts
exist.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
import contextlib
from functools import partial
import hashlib
import json
import os
import re
from typing import Any, TypeVar

from etils import epath

from llama_cpt.checkpoint import step_marks
from llama_cpt.checkpoint.errors import StorageError
from llama_cpt.runtime.literal_paths import files_below, is_regular_file
from llama_cpt.runtime.progress import Progress
from llama_cpt.runtime.retry import is_storage_error, is_transient, with_retries

BLOCK_BYTES = 4 << 20
THREADS = 8
MAX_JSON_BYTES = 256 << 20
"""Maximum size of a manifest or a commit record, in bytes. A manifest of 100,000 files takes less
than a tenth of this size."""

Result = TypeVar("Result")

_PART = re.compile(r"(\d+)\.manifest-(\d{5})-of-(\d{5})\.json")


def commit(checkpoint: epath.Path, part: int, parts: int) -> None:
    """Flush every ``parts``-th file of ``checkpoint`` to disk and write one part of the manifest.

    ``part``, from 0 to ``parts`` - 1, is the index of the first of these files, and also the index
    of the manifest's part. Each of ``parts`` processes must call this function, with a different
    ``part``, after Orbax has written the folder ``checkpoint``. Raises OSError if a file cannot be
    read or written, and FileNotFoundError if the folder is empty.
    """
    all_files = files_below(str(checkpoint))
    if not all_files:
        raise FileNotFoundError(f"{checkpoint} contains no files")
    names = all_files[part::parts]
    with ThreadPoolExecutor(THREADS) as pool:
        commit_file = lambda name: with_retries(partial(_commit_file, checkpoint / name))
        digests = pool.map(commit_file, names)
        entries = dict(zip(names, digests, strict=True))
    # After a power failure, a file exists only if its folder entry was on disk too. The manifest is
    # written last, so that it never lists files that could still be lost.
    for folder in {checkpoint, *((checkpoint / name).parent for name in names)}:
        with_retries(partial(_sync, folder))
    with_retries(partial(_sync, checkpoint.parent))
    content = {"step": int(checkpoint.name), "all_files": len(all_files), "files": entries}
    path = checkpoint.parent / f"{checkpoint.name}.manifest-{part:05}-of-{parts:05}.json"
    with_retries(partial(_write, path, json.dumps(content, indent=1)))


def committed_steps(folder: epath.Path) -> list[int]:
    """Return the steps of the checkpoints in ``folder`` with complete manifests, ascending."""
    return sorted(int(step) for step, found in _parts(folder).items() if _complete(found))


def uncommitted(folder: epath.Path) -> list[epath.Path]:
    """Return the checkpoint folders in ``folder`` with a missing or incomplete manifest."""
    committed = committed_steps(folder)
    steps = (path for path in _entries(folder) if re.fullmatch("[0-9]+", path.name))
    return [path for path in steps if int(path.name) not in committed]


def without_manifest(folder: epath.Path) -> list[epath.Path]:
    """Return the checkpoint folders that lost their manifest after the save was complete.

    The folder of an interrupted save is not returned. An interrupted save is recognized by a mark
    ``STEP.saving`` or by a missing commit record of Orbax.
    """
    marks = step_marks.marked(folder, step_marks.SAVING)
    return [
        path
        for path in uncommitted(folder)
        if int(path.name) not in marks and _may_be_committed(path)
    ]


def unverifiable(folder: epath.Path) -> str:
    """Return an error message if all checkpoints in ``folder`` lost their manifests, else "".

    If the message is not empty, no file in ``folder`` may be deleted.
    """
    if committed_steps(folder):
        return ""
    if not (lost := sorted(int(path.name) for path in without_manifest(folder))):
        return ""
    return (
        f"{folder}: the checkpoints of steps {lost} exist, but their manifests "
        "(STEP.manifest-*.json) do not, so the checkpoints cannot be verified. Copy the manifests "
        "back, or move these checkpoints to a different folder to start a new run."
    )


def parts_of(checkpoint: epath.Path) -> list[epath.Path]:
    """Return the paths of the parts of the manifest of ``checkpoint``."""
    return list(_parts(checkpoint.parent).get(checkpoint.name, {}).values())


def find_damage(checkpoint: epath.Path, part: int = 0, parts: int = 1) -> str | None:
    """Verify every ``parts``-th file of a committed checkpoint, beginning with file ``part``.

    Returns a description of the first damage found, or None. All bytes of these files are read.
    ``parts`` can differ from the value that was passed to ``commit``. Raises StorageError if a file
    cannot be read, in which case the file is not necessarily damaged.
    """
    manifests = _parts(checkpoint.parent).get(checkpoint.name, {})
    try:
        contents = [_read_part(path) for path in manifests.values()]
    except (FileNotFoundError, ValueError) as error:
        return f"{checkpoint}: its manifest cannot be read ({error})"
    for content in contents:
        # Manifests of earlier versions do not contain the step.
        if (step := content.get("step", int(checkpoint.name))) != int(checkpoint.name):
            return f"{checkpoint}: its manifest belongs to step {step!r}"
    files = {name: entry for content in contents for name, entry in content["files"].items()}
    if any(content["all_files"] != len(files) for content in contents) or not files:
        return f"{checkpoint}: its manifest does not cover all its files"
    if part == 0 and (special := _first_special_file(checkpoint)):
        return f"{special} is not a regular file"
    names = sorted(files)[part::parts]
    total = sum(files[name][0] for name in names) / 1e9
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress(f"verify checkpoint {checkpoint.name}", total, "GB")
        if part == 0
        else contextlib.nullcontext() as progress,
    ):
        checks = {pool.submit(_file_damage, checkpoint / n, *files[n]): n for n in names}
        for check in as_completed(checks):
            if check.result():
                pool.shutdown(cancel_futures=True)
                return check.result()
            if progress:
                progress.update(files[checks[check]][0] / 1e9)
    return None


def manifest_digest(checkpoint: epath.Path) -> str:
    """Return the SHA-256 of the sizes and digests of a committed checkpoint's files."""
    parts = sorted(_parts(checkpoint.parent)[checkpoint.name].items())
    files = {name: entry for _, path in parts for name, entry in _read_part(path)["files"].items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def discard(folder: epath.Path, step: int) -> None:
    """Remove the checkpoint of ``step``, its manifest and its marks from ``folder``.

    The manifest is removed first, so that an incomplete checkpoint never counts as committed.
    """
    pattern = re.compile(rf"{step}(\..*)?")
    names = [path.name for path in _entries(folder) if pattern.fullmatch(path.name)]
    for name in sorted(names, key=lambda name: ".manifest-" not in name):
        _remove(folder / name)


def discard_after(folder: epath.Path, step: int) -> None:
    """Remove the committed checkpoints of later steps than ``step``, the newest one first.

    If the process is killed meanwhile, the run resumes from the newest remaining checkpoint.
    """
    for later in reversed(committed_steps(folder)):
        if later > step:
            discard(folder, later)


def discard_uncommitted(folder: epath.Path) -> None:
    """Remove the files of interrupted saves: uncommitted checkpoints and temporary files.

    If no checkpoint is committed, checkpoints that lost their manifests are kept, because they can
    be the only copy of the run.
    """
    committed = set(committed_steps(folder))
    spared = set() if committed else {int(path.name) for path in without_manifest(folder)}
    for path in _entries(folder):
        step = re.match(r"(\d+)(\.|$)", path.name)
        if step and int(step[1]) not in committed | spared:
            discard(folder, int(step[1]))
        elif step and (".orbax-checkpoint-tmp" in path.name or path.name.endswith(".draft")):
            _remove(path)


def size_and_digest(path: epath.Path) -> tuple[int, str]:
    """Return the size of a file in bytes and its SHA-256 in hexadecimal."""
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            size += len(block)
            digest.update(block)
    return size, digest.hexdigest()


def _parts(folder: epath.Path) -> dict[str, dict[tuple[int, int], epath.Path]]:
    """Return ``{step: {(part, parts): path}}`` for the manifests of steps that have a folder."""
    found: dict[str, dict[tuple[int, int], epath.Path]] = {}
    paths = _entries(folder)
    names = {path.name for path in paths}
    for path in paths:
        match = _PART.fullmatch(path.name)
        if match and match[1] in names:
            found.setdefault(match[1], {})[int(match[2]), int(match[3])] = path
    return found


def _entries(folder: epath.Path) -> list[epath.Path]:
    """Return the entries of ``folder``, or [] if it does not exist.

    An empty folder does not exist in object storage.
    """
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _may_be_committed(checkpoint: epath.Path) -> bool:
    """Return whether Orbax may have committed ``checkpoint``.

    Returns True if Orbax's commit record says so, is malformed, or was lost after the commit.
    """
    record = checkpoint / "_CHECKPOINT_METADATA"
    if not is_regular_file(str(record)) or not record.exists():
        # Orbax writes the record first. If it is missing, either the save was interrupted at its
        # start, or the record was lost. ``_METADATA`` exists only in the second case.
        return (checkpoint / "_METADATA").exists()
    try:
        values = json.loads(_read_bounded(record))
    except (ValueError, RecursionError):
        return True
    return not isinstance(values, dict) or values.get("commit_timestamp_nsecs") is not None


def _read_part(path: epath.Path) -> dict[str, Any]:
    """Return one part of a manifest: ``files``, ``all_files`` and, except in earlier versions,
    ``step``.

    Raises ValueError if the file is not a valid part of a manifest, and the errors of ``_read``.
    """
    if not is_regular_file(str(path)) and os.path.lexists(path):
        raise ValueError(f"{path} is not a regular file")
    try:
        content = json.loads(_read(path, partial(_read_bounded, path)))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or type(content.get("all_files")) is not int:
        raise ValueError(f"{path} is not part of a manifest")
    for name, entry in files.items():
        if not _is_entry(name, entry):
            raise ValueError(f"{path} has an invalid entry {name!r}")
    return content


def _is_entry(name: str, entry: Any) -> bool:
    """Return whether ``name`` is a path inside a checkpoint, and ``entry`` a size with a digest."""
    if name.startswith("/") or not {"..", ".", ""}.isdisjoint(name.split("/")) or "\0" in name:
        return False
    if not isinstance(entry, list) or [type(value) for value in entry] != [int, str]:
        return False
    return entry[0] >= 0


def _read_bounded(path: epath.Path) -> bytes:
    """Return the content of a file; raise ValueError if it has more than MAX_JSON_BYTES."""
    with path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes")
    return content


def _first_special_file(checkpoint: epath.Path) -> str | None:
    """Return a file of a local checkpoint that is not a regular file, or None.

    Orbax would block when it opens a FIFO, even a FIFO that the manifest does not list.
    """
    if "://" in str(checkpoint):
        return None
    paths = (str(checkpoint / name) for name in files_below(str(checkpoint)))
    return next((path for path in paths if not is_regular_file(path)), None)


def _remove(path: epath.Path) -> None:
    """Remove a file, a folder with its content, or a link but not its target."""
    if path.is_dir() and not os.path.islink(path):
        path.rmtree()
    else:
        path.unlink()


def _complete(found: dict[tuple[int, int], epath.Path]) -> bool:
    totals = {parts for _, parts in found}
    return len(totals) == 1 and len(found) == totals.pop()


def _write(path: epath.Path, content: str) -> None:
    draft = path.with_name(path.name + ".draft")
    draft.write_text(content)
    _sync(draft)
    draft.replace(path)
    _sync(path.parent)


def _commit_file(path: epath.Path) -> tuple[int, str]:
    _sync(path)
    return size_and_digest(path)


def _file_damage(path: epath.Path, size: int, digest: str) -> str | None:
    if not is_regular_file(str(path)):
        special = os.path.lexists(path) and not os.path.islink(path)
        return f"{path} is not a regular file" if special else f"{path} is missing"
    try:
        # The size of a local file is compared first, because a wrong file can be very large.
        found_size, found_digest = size if "://" in str(path) else os.path.getsize(path), ""
        if found_size == size:
            found_size, found_digest = _read(path, partial(size_and_digest, path))
    except FileNotFoundError:
        return f"{path} is missing"
    if found_size != size:
        return f"{path} has {found_size:,} bytes instead of {size:,}"
    return None if found_digest == digest else f"{path} was altered (its digest differs)"


def _read(path: epath.Path, read: Callable[[], Result]) -> Result:
    """Return the result of ``read``, a function that reads ``path``; retry transient errors.

    Raises StorageError if the last attempt fails. Raises FileNotFoundError if the file is missing,
    which is damage and not a storage error.
    """
    try:
        return with_retries(read)
    except Exception as error:
        if isinstance(error, FileNotFoundError) or not is_storage_error(error):
            raise
        raise StorageError(
            f"{path} cannot be read ({error}). If this error persists, move the checkpoint to a "
            "different folder to use the previous checkpoint.",
            transient=is_transient(error),
        ) from error


def _sync(path: epath.Path) -> None:
    """Flush a local file or folder to disk; object storage needs no flush."""
    if "://" in str(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
