"""Source files of a corpus: finding them, their digests, and detection of changes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import contextlib
from dataclasses import dataclass
import fnmatch
import glob
import hashlib
import os
from pathlib import Path
import re
import shlex
from typing import Any

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.runtime.errors import UserError
from llama_cpt.runtime.literal_paths import open_for_reading, remote_storage
from llama_cpt.runtime.progress import Progress
from llama_cpt.runtime.retry import is_transient
from llama_cpt.runtime.storage import UnreachableError, check_reachable

TFDS = "tfds:"
BLOCK_BYTES = 4 << 20
# Digests of the content that object stores keep, the strongest first.
STORED_DIGESTS = ("md5Hash", "crc32c", "ETag", "etag")


@dataclass(frozen=True)
class Sources:
    """The source files of one corpus in the order in which they are read."""

    corpus: str
    files: tuple[str, ...]
    dataset: str = ""
    """``tfds:NAME[:SPLIT]`` if the files belong to a TFDS dataset, else empty."""

    def stats(self) -> list[dict[str, Any]]:
        """Return ``{"path", "bytes", "modified"}`` of each file."""
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(_stat, self.files))


def find_sources(corpus: CorpusConfig) -> Sources:
    """Return the files of ``corpus``, sorted; raise UserError if there are none."""
    check_reachable(corpus.source, pattern=True)
    with storage_errors_as_user_errors(corpus.source):
        if corpus.source.startswith(TFDS):
            builder, split = open_dataset(corpus.source)
            files = [os.fspath(path) for path in builder.info.splits[split].filepaths]
            return Sources(corpus.name, tuple(files), corpus.source)
        found = _matches(corpus.source)
    if not found:
        raise UserError(
            f"corpus {corpus.name!r}: no file matches {corpus.source}; correct its source."
        )
    return Sources(corpus.name, tuple(sorted(found)))


def with_digests(corpus: str, stats: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ``stats`` with a ``digest`` of each file's content added."""
    megabytes = sum(stat["bytes"] for stat in stats) / 1e6
    done = []
    with (
        Progress(f"digest of the sources of {corpus}", megabytes, "MB") as progress,
        ThreadPoolExecutor(8) as pool,
    ):
        digests = pool.map(lambda stat: file_digest(stat["path"]), stats)
        for stat, digest in zip(stats, digests, strict=True):
            progress.update(stat["bytes"] / 1e6)
            done.append(stat | {"digest": digest})
    return done


def file_digest(path: str) -> str:
    """Return the SHA-256 of a local file, or the digest that an object store keeps."""
    with storage_errors_as_user_errors(path):
        if "://" in path:
            system, name = remote_storage(path)
            info = system.info(name)
            for key in STORED_DIGESTS:
                if info.get(key):
                    return f"{key}:{info[key]}"
        digest = hashlib.sha256()
        with open_for_reading(path) as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()


def describe_changes(now: list[dict[str, Any]], before: list[dict[str, Any]]) -> str | None:
    """Return how the files with stats ``now`` differ from ``before``, which has digests, or None.

    A move to another folder is not a change.
    """
    if len(now) != len(before):
        return f"there are {len(now)} source files, there were {len(before)}"
    for new, old in zip(now, before, strict=True):
        if Path(new["path"]).name != Path(old["path"]).name:
            return f"source {new['path']} was {old['path']}"
        # A file with equal size and time is not read: hashing a terabyte would delay every start.
        untouched = new | {"digest": old["digest"]} == old
        if not untouched and (
            new["bytes"] != old["bytes"] or file_digest(new["path"]) != old["digest"]
        ):
            return f"source {new['path']} has changed"
    return None


def open_dataset(source: str) -> tuple[Any, str]:
    """Return builder and split of ``tfds:NAME[/CONFIG][:VERSION][:SPLIT]``; default is ``train``.

    Raises UserError if the dataset was not built as ArrayRecord.
    """
    import tensorflow_datasets as tfds  # A second to import, only for this kind.

    pattern = rf"{TFDS}([^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?)(?::(.+))?"
    named = re.fullmatch(pattern, source)
    if not named:
        raise UserError(f"{source}: must have the form tfds:NAME or tfds:NAME:SPLIT.")
    name, split = named[1], named[2] or "train"
    folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    build = f"tfds build --file_format=array_record {shlex.quote(name)}"
    remedy = f"Build it: `TFDS_DATA_DIR={_quoted(folder)} {build}`."
    try:
        builder = tfds.builder(name, try_gcs=False)
        known = list(builder.info.splits)
        files = builder.info.splits[split].filepaths if known else ()
    except Exception as error:  # tfds has no common class for errors of the user
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"{source}: {reason}. {remedy}") from None
    if not known:
        raise UserError(f"{source}: not in {folder}. {remedy}")
    if not all("array_record" in os.fspath(path) for path in files):
        raise UserError(f"{source}: is not in the ArrayRecord format. {remedy}")
    return builder, split


def _quoted(folder: str) -> str:
    """Return ``folder`` quoted for a shell, with a leading ``~/`` left for the shell to expand."""
    prefix = "~/" if folder.startswith("~/") else ""
    return prefix + shlex.quote(folder.removeprefix(prefix))


@contextlib.contextmanager
def storage_errors_as_user_errors(path: str) -> Iterator[None]:
    """Context manager that turns file system errors into a UserError that names ``path``.

    Transient errors become UnreachableError.
    """
    try:
        yield
    except UserError:
        raise
    except (OSError, ImportError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if is_transient(error):
            raise UnreachableError(f"{path}: cannot be read now ({reason}).") from None
        raise UserError(f"{path}: cannot be read ({reason}).") from None


def _matches(source: str) -> list[str]:
    """Return the file that ``source`` names literally, else those that it matches as a pattern."""
    if "://" in source:
        system, path = remote_storage(source)
        if system.isfile(path):
            return [system.unstrip_protocol(path)]
        found = system.glob(path, detail=True)
        return [system.unstrip_protocol(n) for n, info in found.items() if info["type"] == "file"]
    source = os.path.expanduser(source)
    if os.path.isdir(source):
        raise UserError(f"{source} is a folder; set a file pattern such as {source}/*.jsonl.gz.")
    if os.path.isfile(source):
        return [source]
    folder, pattern = _split_pattern(source)
    names = glob.glob(pattern, root_dir=folder or None, recursive=True)
    paths = [os.path.join(folder, name) for name in names]
    return [path for path in paths if os.path.isfile(path)]


def _split_pattern(source: str) -> tuple[str, str]:
    """Return the longest existing folder of ``source``, and the rest, which is a pattern."""
    folder = os.path.dirname(source)
    while folder and not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder, source.removeprefix(folder).lstrip("/")


def was_matched(path: str, source: str) -> bool:
    """Return whether ``source`` could have matched ``path``, for any literal leading folders."""
    source = os.path.expanduser(source)
    cuts = [0, *(at + 1 for at, mark in enumerate(source) if mark == "/"), len(source)]
    return any(
        path[:cut] == source[:cut]
        and fnmatch.fnmatchcase(path[cut:], source[cut:].replace("**/", "*"))
        for cut in cuts
    )


def _stat(path: str) -> dict[str, Any]:
    with storage_errors_as_user_errors(path):
        if "://" not in path:
            stat = os.stat(path)
            return {"path": path, "bytes": stat.st_size, "modified": str(stat.st_mtime_ns)}
        system, name = remote_storage(path)
        info = system.info(name)
        modified = info.get("mtime") or info.get("updated") or info.get("created") or ""
        return {"path": path, "bytes": info["size"], "modified": str(modified)}
