"""Source files of a corpus: search by pattern, digests, and detection of changes."""

from collections.abc import Generator, Sequence
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
from typing import Any, cast

from llama_cpt.config.schema import CorpusConfig
from llama_cpt.runtime.errors import UserError, first_line
from llama_cpt.runtime.literal_paths import open_for_reading, remote_storage
from llama_cpt.runtime.progress import Progress
from llama_cpt.runtime.retry import is_storage_error, is_transient
from llama_cpt.runtime.storage import HUB, HUB_ACCESS, UnreachableError, check_reachable

TFDS = "tfds:"
BLOCK_BYTES = 4 << 20
# Keys of content digests in the metadata of object stores, the strongest digest first.
STORED_DIGESTS = ("md5Hash", "crc32c", "ETag", "etag", "blob_id")


@dataclass(frozen=True)
class Sources:
    """The source files of one corpus, in the order in which they are read."""

    corpus: str
    files: tuple[str, ...]
    dataset: str = ""
    """``tfds:NAME[:SPLIT]`` if the files belong to a TFDS dataset, else empty."""

    def stats(self) -> list[dict[str, Any]]:
        """Return a dict with the keys ``path``, ``bytes`` and ``modified`` for each file."""
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(_stat, self.files))


def find_sources(corpus: CorpusConfig) -> Sources:
    """Return the source files of ``corpus`` in sorted order; raise UserError if there are none."""
    check_reachable(corpus.source, pattern=True)
    with storage_errors_as_user_errors(corpus.source):
        if corpus.source.startswith(TFDS):
            builder, split = open_dataset(corpus.source)
            files = [os.fspath(path) for path in builder.info.splits[split].filepaths]
            return Sources(corpus.name, tuple(files), corpus.source)
        found = _matches(corpus.source)
    if not found:
        raise UserError(
            f"corpus {corpus.name!r}: no file matches {corpus.source}; correct the source."
        )
    return Sources(corpus.name, tuple(sorted(found)))


def with_digests(
    corpus: str, stats: list[dict[str, Any]], known: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return ``stats`` with the key ``digest`` added: a digest of each file's content.

    ``known`` is the result of an earlier call. A file with the same path, size and time as in
    ``known`` is not read again.
    """
    before = {(one["path"], one["bytes"], one["modified"]): one["digest"] for one in known}

    def digest(stat: dict[str, Any]) -> str:
        # Some stores have no times.
        found = before.get((stat["path"], stat["bytes"], stat["modified"] or None))
        return found or file_digest(stat["path"])

    megabytes = sum(stat["bytes"] for stat in stats) / 1e6
    done = []
    with (
        Progress(f"digest of the sources of {corpus}", megabytes, "MB") as progress,
        ThreadPoolExecutor(8) as pool,
    ):
        for stat, found in zip(stats, pool.map(digest, stats), strict=True):
            progress.update(stat["bytes"] / 1e6)
            done.append(stat | {"digest": found})
    return done


def file_digest(path: str) -> str:
    """Return a digest of the content of a file.

    The digest is read from the metadata of the object store if possible; otherwise, it is the
    SHA-256 digest.
    """
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
    """Return a message that describes the first difference between two lists of files, or None.

    ``now`` is from ``Sources.stats``, and ``before`` is from ``with_digests``. A move of the files
    to a different folder is not a difference.
    """
    if len(now) != len(before):
        return f"there are {len(now)} source files, there were {len(before)}"
    for new, old in zip(now, before, strict=True):
        if Path(new["path"]).name != Path(old["path"]).name:
            return f"source {new['path']} was {old['path']}"
        # A file with the same size and time is not read: hashing terabytes would delay each launch.
        untouched = new | {"digest": old["digest"]} == old
        if not untouched and (
            new["bytes"] != old["bytes"] or file_digest(new["path"]) != old["digest"]
        ):
            return f"source {new['path']} has changed"
    return None


def open_dataset(source: str) -> tuple[Any, str]:
    """Return the TFDS builder and the split of ``tfds:NAME[/CONFIG][:VERSION][:SPLIT]``.

    The default split is ``train``. Raises UserError if the dataset was not built as ArrayRecord.
    """
    import tensorflow_datasets as tfds  # Imported here, because the import takes a second.

    pattern = rf"{TFDS}([^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?)(?::(.+))?"
    named = re.fullmatch(pattern, source)
    if not named:
        raise UserError(f"{source} must have the form tfds:NAME or tfds:NAME:SPLIT.")
    name, split = named[1], named[2] or "train"
    folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    build = f"tfds build --file_format=array_record {shlex.quote(name)}"
    remedy = f"Build the dataset: `TFDS_DATA_DIR={_quoted(folder)} {build}`."
    try:
        builder = tfds.builder(name, try_gcs=False)
        known = list(builder.info.splits)
        files = builder.info.splits[split].filepaths if known else ()
    except Exception as error:  # TFDS has no common base class for user errors.
        reason = first_line(error).rstrip(".")
        raise UserError(f"{source}: {reason}. {remedy}") from None
    if not known:
        raise UserError(f"{source} is not in {folder}. {remedy}")
    if not all("array_record" in os.fspath(path) for path in files):
        raise UserError(f"{source} is not in the ArrayRecord format. {remedy}")
    return builder, split


def _quoted(folder: str) -> str:
    """Return ``folder`` quoted for a shell, except a leading ``~/``, which the shell expands."""
    prefix = "~/" if folder.startswith("~/") else ""
    return prefix + shlex.quote(folder.removeprefix(prefix))


@contextlib.contextmanager
def storage_errors_as_user_errors(path: str) -> Generator[None]:
    """Context manager that turns file system errors into UserErrors that name ``path``.

    Transient errors become UnreachableError.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Each storage client has its own exception types.
        if not isinstance(error, ImportError | ValueError) and not is_storage_error(error):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        if is_transient(error):
            raise UnreachableError(f"{path}: cannot be read now ({reason}).") from None
        remedy = f"; name another path, or {HUB_ACCESS}" if path.startswith(HUB) else ""
        raise UserError(f"{path}: cannot be read ({reason}){remedy}.") from None


def _matches(source: str) -> list[str]:
    """Return the file at ``source`` or, if it does not exist, the files that match the pattern."""
    if "://" in source:
        system, path = remote_storage(source)
        if source.startswith(HUB):
            # A data set that does not exist or is private would look like a pattern without files.
            cast(Any, system).resolve_path(path)
        if system.isfile(path):
            return [system.unstrip_protocol(path)]
        try:
            found: Any = system.glob(path, detail=True)
        except FileNotFoundError:  # Some file systems raise it for a folder that does not exist.
            return []
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
    """Return the longest leading folder of ``source`` that exists, and the remaining pattern."""
    folder = os.path.dirname(source)
    while folder and not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder, source.removeprefix(folder).lstrip("/")


def was_matched(path: str, source: str) -> bool:
    """Return whether the pattern ``source`` matches ``path``, which need not exist.

    Leading folders of ``source`` can be literal names that look like patterns.
    """
    source = os.path.expanduser(source)
    cuts = [0, *(at + 1 for at, mark in enumerate(source) if mark == "/"), len(source)]
    return any(
        path[:cut] == source[:cut]
        and fnmatch.fnmatchcase(path[cut:], source[cut:].replace("**/", "*"))
        for cut in cuts
    )


def _stat(path: str) -> dict[str, Any]:
    """Return path, size in bytes and modification time of a file."""
    with storage_errors_as_user_errors(path):
        if "://" not in path:
            stat = os.stat(path)
            return {"path": path, "bytes": stat.st_size, "modified": str(stat.st_mtime_ns)}
        system, name = remote_storage(path)
        info = system.info(name)
        # The hub stores a digest, but no time.
        keys = ("mtime", "updated", "created", "blob_id")
        modified = next(filter(None, map(info.get, keys)), "")
        return {"path": path, "bytes": info["size"], "modified": str(modified)}
