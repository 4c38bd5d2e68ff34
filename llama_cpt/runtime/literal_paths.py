"""Literal paths: validating, listing and opening a user's path without reading a pattern in it.

Libraries below this package read parts of a path as syntax. The ``glob`` of etils globs its own
folder as well as the pattern, fsspec splits ``a::b`` into a chain of file systems and expands
``*?[`` in remote removals and copies, and TensorStore turns a backslash into a slash. Every listing
and opening by a user's path goes through this module; only ``data/sources/`` reads patterns.
"""

from collections.abc import Iterator
import fnmatch
import os
from typing import Any, BinaryIO

from etils import epath
import fsspec

from llama_cpt.runtime.errors import UserError

REMOTE_MARKS = ("*", "?", "[", "]", "#")
"""Wildcards of storage clients, and the mark of an object's generation."""
CHAIN = "::"
"""The separator of file systems in a chained URL of fsspec."""
# Roots that etils reads as the URL of a bucket: /gs/bucket as gs://bucket.
_BUCKET_ROOTS = ("gs", "s3", "az", "hf")


def validate_path(path: str, *, pattern: bool = False) -> None:
    """Raise UserError if ``path`` has characters that cannot be carried literally.

    ``pattern`` allows the wildcards of a corpus source.
    """
    if any(ord(character) < 32 or character == "\x7f" for character in path):
        raise UserError(f"{path!r}: has control characters such as newlines; rename it.")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path!r}: is not UTF-8; rename it.") from None
    if "://" in path:
        wildcards = () if pattern else REMOTE_MARKS
        if bad := [mark for mark in (*wildcards, CHAIN) if mark in path]:
            raise UserError(
                f"{path}: a remote path cannot hold {' '.join(bad)}, which storage clients read as "
                "a pattern, a generation or a chain; name another."
            )
    elif path.startswith("/") and path.split("/")[1] in _BUCKET_ROOTS:
        root = path.split("/")[1]
        raise UserError(
            f"{path}: /{root}/ is read as {root}://; write {root}:// for a bucket, or use a folder "
            "with another name."
        )


def validate_run_folder(path: str) -> None:
    """Raise UserError if ``path`` cannot hold the checkpoints of a run."""
    validate_path(path)
    # A relative path is invalid if the current folder is.
    absolute = path if "://" in path else os.path.abspath(os.path.expanduser(path))
    validate_path(absolute)
    if "\\" in absolute:
        raise UserError(
            f"{absolute}: TensorStore, which writes checkpoints, reads \\ as /; use another folder."
        )


def remote_storage(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a remote ``url`` and the name in it."""
    validate_path(url, pattern=True)
    return fsspec.core.url_to_fs(url)


def open_for_reading(path: str) -> BinaryIO:
    """Open a local or remote file as a stream of bytes."""
    if "://" in path:
        system, name = remote_storage(path)
        return system.open(name, "rb")
    return open(path, "rb")


def matching(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """Return the entries of ``folder`` that match ``pattern``, sorted; [] if it does not exist."""
    try:
        entries = [entry for entry in folder.iterdir() if fnmatch.fnmatchcase(entry.name, pattern)]
    except FileNotFoundError:
        return []
    return sorted(entries, key=lambda entry: entry.name)


def files_below(folder: str) -> list[str]:
    """Return the paths of all files below ``folder``, relative to it, sorted."""
    if "://" in folder:
        # One request to an object store; a walk would send one request per folder.
        system, root = remote_storage(folder)
        return sorted(path.removeprefix(f"{root}/") for path in system.find(root))
    walk = os.walk(folder, onerror=_raise)
    found = (os.path.join(parent, name) for parent, _, names in walk for name in names)
    return sorted(os.path.relpath(path, folder) for path in found)


class LiteralPath(type(epath.Path())):
    """A path whose ``glob`` takes its own folder literally, to hand to a library that globs."""

    def glob(self, pattern: str) -> Iterator[Any]:
        """Iterate over entries that match the last part of ``pattern``; other parts are literal."""
        *folders, name = pattern.split("/")
        return iter(matching(self.joinpath(*folders), name))


def _raise(error: OSError) -> None:
    raise error
