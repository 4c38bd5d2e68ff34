"""Manifests: size and digest of every file of a checkpoint, which commit the checkpoint.

Orbax restores flipped bits without an error, and its own commit does not show what reached the
disk. The checkpoint ``STEP`` is committed once ``STEP.manifest-00000-of-0000N.json`` and the other
N - 1 parts exist. Each of N processes digests one share of the files, no matter which process wrote
them, and writes one part.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
import contextlib
from functools import partial
import hashlib
import json
import os
import re
from typing import TypeVar

from etils import epath

from llama_cpt.checkpoint import step_marks
from llama_cpt.checkpoint.errors import StorageError
from llama_cpt.runtime.literal_paths import files_below
from llama_cpt.runtime.progress import Progress
from llama_cpt.runtime.retry import is_storage_error, is_transient, with_retries

BLOCK_BYTES = 4 << 20
THREADS = 8

Result = TypeVar("Result")

_PART = re.compile(r"(\d+)\.manifest-(\d{5})-of-(\d{5})\.json")


def commit(checkpoint: epath.Path, part: int, parts: int) -> None:
    """Sync share ``part`` of the files of folder ``checkpoint`` to disk and write its manifest.

    Each of ``parts`` processes must call this once the folder is complete. Raises OSError.
    """
    all_files = files_below(str(checkpoint))
    if not all_files:
        raise FileNotFoundError(f"{checkpoint} holds no files")
    names = all_files[part::parts]
    with ThreadPoolExecutor(THREADS) as pool:
        commit_file = lambda name: with_retries(partial(_commit_file, checkpoint / name))
        digests = pool.map(commit_file, names)
        entries = dict(zip(names, digests, strict=True))
    # A file survives a power failure only if its folder entry is on disk too. The manifest comes
    # last, so that it never vouches for files that could still be lost.
    for folder in {checkpoint, *((checkpoint / name).parent for name in names)}:
        with_retries(partial(_sync, folder))
    with_retries(partial(_sync, checkpoint.parent))
    content = {"step": int(checkpoint.name), "all_files": len(all_files), "files": entries}
    path = checkpoint.parent / f"{checkpoint.name}.manifest-{part:05}-of-{parts:05}.json"
    with_retries(partial(_write, path, json.dumps(content, indent=1)))


def committed_steps(folder: epath.Path) -> list[int]:
    """Return the steps in ``folder`` whose manifests are complete, ascending."""
    return sorted(int(step) for step, found in _parts(folder).items() if _complete(found))


def uncommitted(folder: epath.Path) -> list[epath.Path]:
    """Return the folders of steps whose manifests are missing or incomplete."""
    committed = committed_steps(folder)
    steps = (path for path in _entries(folder) if path.name.isdigit())
    return [path for path in steps if int(path.name) not in committed]


def without_manifest(folder: epath.Path) -> list[epath.Path]:
    """Return the complete checkpoints whose manifest was lost rather than not written yet.

    An interrupted save differs from these: it left a mark, or Orbax did not record its commit.
    """
    marks = step_marks.marked(folder, step_marks.SAVING)
    return [
        path
        for path in uncommitted(folder)
        if int(path.name) not in marks and _may_be_committed(path)
    ]


def unverifiable(folder: epath.Path) -> str:
    """Return an error message if all checkpoints in ``folder`` lost their manifests, else ''.

    Nothing in such a folder may be deleted.
    """
    if committed_steps(folder):
        return ""
    if not (lost := sorted(int(path.name) for path in without_manifest(folder))):
        return ""
    return (
        f"{folder}: the checkpoints of steps {lost} are there, but their manifests "
        "(STEP.manifest-*.json) are not, so they cannot be verified. Copy the manifests back, or "
        "move these folders away to start again."
    )


def parts_of(checkpoint: epath.Path) -> list[epath.Path]:
    """Return the files of the manifest of ``checkpoint``."""
    return list(_parts(checkpoint.parent).get(checkpoint.name, {}).values())


def find_damage(checkpoint: epath.Path, part: int = 0, parts: int = 1) -> str | None:
    """Return what is wrong with share ``part`` of ``parts`` of a committed checkpoint, or None.

    Reads every byte; the shares need not be those of ``commit``. Raises StorageError for a
    file that cannot be read now, which may be intact.
    """
    manifests = _parts(checkpoint.parent).get(checkpoint.name, {})
    try:
        contents = [json.loads(_read(path, path.read_text)) for path in manifests.values()]
        # Manifests of earlier versions do not record the step.
        steps = {content.get("step", int(checkpoint.name)) for content in contents}
        if steps - {int(checkpoint.name)}:
            return f"{checkpoint}: its manifest is that of step {min(steps)}"
        files = {name: entry for content in contents for name, entry in content["files"].items()}
        if any(content["all_files"] != len(files) for content in contents) or not files:
            return f"{checkpoint}: its manifest does not cover all its files"
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{checkpoint}: its manifest cannot be read ({error})"
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
    """Return the SHA-256 of the digests of a committed checkpoint's files: its identity."""
    parts = sorted(_parts(checkpoint.parent)[checkpoint.name].items())
    contents = [json.loads(path.read_text())["files"] for _, path in parts]
    files = {name: entry for content in contents for name, entry in content.items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def discard(folder: epath.Path, step: int) -> None:
    """Remove all files of ``step``, the manifest first, so that no part is ever committed."""
    pattern = re.compile(rf"{step}(\..*)?")
    names = [path.name for path in _entries(folder) if pattern.fullmatch(path.name)]
    for name in sorted(names, key=lambda name: ".manifest-" not in name):
        path = folder / name
        path.rmtree() if path.is_dir() else path.unlink()


def discard_uncommitted(folder: epath.Path) -> None:
    """Remove the files of interrupted saves: uncommitted steps, temporary folders, drafts.

    Checkpoints that lost their manifests stay if there is no other: they may be the only copy.
    """
    committed = set(committed_steps(folder))
    spared = set() if committed else {int(path.name) for path in without_manifest(folder)}
    for path in _entries(folder):
        step = re.match(r"(\d+)(\.|$)", path.name)
        if step and int(step[1]) not in committed | spared:
            discard(folder, int(step[1]))
        elif step and (".orbax-checkpoint-tmp" in path.name or path.name.endswith(".draft")):
            path.rmtree() if path.is_dir() else path.unlink()


def size_and_digest(path: epath.Path) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256, hashlib's fastest on processors that support it."""
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            size += len(block)
            digest.update(block)
    return size, digest.hexdigest()


def _parts(folder: epath.Path) -> dict[str, dict[tuple[int, int], epath.Path]]:
    """Return ``{step: {(part, parts): manifest}}`` for every step whose folder exists."""
    found: dict[str, dict[tuple[int, int], epath.Path]] = {}
    paths = _entries(folder)
    names = {path.name for path in paths}
    for path in paths:
        match = _PART.fullmatch(path.name)
        if match and match[1] in names:
            found.setdefault(match[1], {})[int(match[2]), int(match[3])] = path
    return found


def _entries(folder: epath.Path) -> list[epath.Path]:
    """Return the entries of ``folder``. An object store has no empty folders: they are missing."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def _may_be_committed(checkpoint: epath.Path) -> bool:
    """Return whether Orbax committed ``checkpoint``, True if its record cannot be read."""
    record = checkpoint / "_CHECKPOINT_METADATA"
    try:
        return json.loads(record.read_text()).get("commit_timestamp_nsecs") is not None
    except FileNotFoundError:
        # Orbax writes this file first. Without it the save barely began, or the file was lost.
        return (checkpoint / "_METADATA").exists()
    except (ValueError, AttributeError):
        return True


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
    try:
        found_size, found_digest = _read(path, partial(size_and_digest, path))
    except FileNotFoundError:
        return f"{path} is missing"
    if found_size != size:
        return f"{path} has {found_size:,} bytes instead of {size:,}"
    return None if found_digest == digest else f"{path} was altered (its digest differs)"


def _read(path: epath.Path, read: Callable[[], Result]) -> Result:
    """Return ``read()`` of ``path``, with retries; raise StorageError if storage still fails.

    A missing file raises FileNotFoundError, because it is damage and not a failure of storage.
    """
    try:
        return with_retries(read)
    except Exception as error:
        if isinstance(error, FileNotFoundError) or not is_storage_error(error):
            raise
        raise StorageError(
            f"{path} cannot be read ({error}). If this persists, move its checkpoint away "
            "to use the one before it.",
            transient=is_transient(error),
        ) from error


def _sync(path: epath.Path) -> None:
    """Wait until a local file or folder is on disk; object stores do so by themselves."""
    if "://" in str(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
