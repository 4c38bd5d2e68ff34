"""Verification of a checkpoint's files, repeated only if the files have changed."""

from concurrent.futures import ThreadPoolExecutor
import os
from typing import Any

from etils import epath

from llama_cpt.checkpoint import manifest
from llama_cpt.runtime.literal_paths import remote_storage

_results: dict[tuple[str, int, int], tuple[Any, str | None]] = {}
"""Cached results of ``find_damage`` by (checkpoint, part, parts).

A result contains the state of the files when they were verified, and the damage found.
"""


def find_damage(checkpoint: epath.Path, part: int, parts: int) -> str | None:
    """Return a description of the first damage found, or None, as ``manifest.find_damage`` does.

    The result is cached until a file of the checkpoint changes.
    """
    key, before = (str(checkpoint), part, parts), _state_of_files(checkpoint)
    if before is not None and key in _results and _results[key][0] == before:
        return _results[key][1]
    found = manifest.find_damage(checkpoint, part, parts)
    _results[key] = before, found
    return found


def _state_of_files(checkpoint: epath.Path) -> Any:
    """Return a value that changes if a file of ``checkpoint`` or its manifest changes.

    Returns None if the state of the files is not available.
    """
    if "://" in str(checkpoint):
        return _state_of_objects(checkpoint)
    files = [
        os.path.join(folder, name) for folder, _, names in os.walk(checkpoint) for name in names
    ]
    files += [str(path) for path in manifest.parts_of(checkpoint)]
    # The inode and the change time show that a file was replaced, even if its modification time was
    # restored.
    try:
        with ThreadPoolExecutor(manifest.THREADS) as pool:
            stats = list(pool.map(os.stat, files))
    except OSError:
        return None
    return sorted(
        (name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        for name, stat in zip(files, stats, strict=True)
    )


def _state_of_objects(checkpoint: epath.Path) -> Any:
    """Return the size and the generation or ETag of every object of ``checkpoint``.

    Returns None if the store has neither generations nor ETags.
    """
    storage, root = remote_storage(str(checkpoint.parent))
    storage.invalidate_cache()
    objects: Any = storage.find(root, detail=True)
    inside, names = f"{root}/{checkpoint.name}/", {p.name for p in manifest.parts_of(checkpoint)}
    found = [
        (path, entry.get("size"), entry.get("generation") or entry.get("etag"))
        for path, entry in objects.items()
        if path.startswith(inside) or path.rsplit("/", 1)[1] in names
    ]
    return sorted(found) if found and all(tag for *_, tag in found) else None
