"""Verification of a checkpoint's digests, done once per process while its files stay the same."""

from concurrent.futures import ThreadPoolExecutor
import os
import sys
from typing import Any

from etils import epath

from llama_cpt.checkpoint import manifest
from llama_cpt.runtime.literal_paths import remote_storage

_results: dict[tuple[str, int, int], tuple[Any, str | None]] = {}
"""State of the files and the damage found in them, by (checkpoint, share, shares)."""

_printed: set[str] = set()
"""Messages that this process has printed."""


def find_damage(checkpoint: epath.Path, part: int, parts: int) -> str | None:
    """Return ``manifest.find_damage``, from memory if no file has changed since the last call."""
    key, before = (str(checkpoint), part, parts), _state_of_files(checkpoint)
    if before is not None and key in _results and _results[key][0] == before:
        return _results[key][1]
    found = manifest.find_damage(checkpoint, part, parts)
    _results[key] = before, found
    return found


def warn_once(message: str) -> None:
    """Print ``message`` to stderr, unless this process has printed it before."""
    if message not in _printed:
        _printed.add(message)
        print(message, file=sys.stderr)


def _state_of_files(checkpoint: epath.Path) -> Any:
    """Return the state of the files of ``checkpoint`` and its manifest, None if unknown."""
    if "://" in str(checkpoint):
        return _state_of_objects(checkpoint)
    files = [
        os.path.join(folder, name) for folder, _, names in os.walk(checkpoint) for name in names
    ]
    files += [str(path) for path in manifest.parts_of(checkpoint)]
    # The inode and the change time catch a replaced file whose modification time was restored.
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
    """Return the generation or tag of every object, None if the store has neither."""
    storage, root = remote_storage(str(checkpoint.parent))
    storage.invalidate_cache()
    inside, names = f"{root}/{checkpoint.name}/", {p.name for p in manifest.parts_of(checkpoint)}
    found = [
        (path, entry.get("size"), entry.get("generation") or entry.get("etag"))
        for path, entry in storage.find(root, detail=True).items()
        if path.startswith(inside) or path.rsplit("/", 1)[1] in names
    ]
    return sorted(found) if found and all(tag for *_, tag in found) else None
