"""Validation, listing and opening of paths as literal names, even if they look like patterns.

Some libraries interpret parts of a path as syntax. The ``glob`` of etils expands wildcards in the
folder's own name, fsspec splits ``a::b`` into a chain of file systems and expands ``*?[`` in remote
removals and copies, and TensorStore turns a backslash into a slash. The package therefore lists and
opens users' paths through this module. Only ``data/sources/`` accepts patterns.
"""

from collections.abc import Iterator
import errno
import fnmatch
import os
import stat
from typing import Any, BinaryIO, cast

from etils import epath
import fsspec

from llama_cpt.runtime.errors import UserError

REMOTE_MARKS = ("*", "?", "[", "]", "#")
"""Characters that storage clients interpret: wildcards, and ``#`` before a generation number."""
CHAIN = "::"
"""Separator of the file systems in a chained URL of fsspec."""
# First folders that etils interprets as a URL scheme: it reads /gs/bucket as gs://bucket.
_BUCKET_ROOTS = ("gs", "s3", "az", "hf")


def validate_path(path: str, *, pattern: bool = False) -> None:
    """Raise UserError if a library would not take ``path`` literally.

    With ``pattern`` True, wildcards are allowed, as in the ``source`` of a corpus.
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
    """Raise UserError if ``path`` contains characters that prevent the writing of checkpoints."""
    validate_path(path)
    # A relative path is invalid if the path of the current folder is invalid.
    absolute = path if "://" in path else os.path.abspath(os.path.expanduser(path))
    validate_path(absolute)
    if "\\" in absolute:
        raise UserError(
            f"{absolute}: TensorStore, which writes checkpoints, reads \\ as /; use another folder."
        )


def is_regular_file(path: str) -> bool:
    """Return whether ``path`` is an object in a bucket or a regular file, which may be linked.

    A FIFO, a socket, a device, a folder, a dangling link and a loop of links are not regular files.
    Opening a FIFO would block until another process opens it. Raises OSError if the file cannot be
    examined for a different reason.
    """
    if "://" in path:
        return True
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            return False
        raise


def require_regular_file(path: str) -> None:
    """Raise UserError if ``path`` exists but is not a regular file."""
    if not is_regular_file(path) and os.path.lexists(path):
        raise UserError(f"{path}: is not a regular file; remove it or replace it by a copy.")


def remote_storage(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a remote ``url`` and the path within that file system."""
    validate_path(url, pattern=True)
    return fsspec.core.url_to_fs(url)


def open_for_reading(path: str) -> BinaryIO:
    """Open a local or remote file for reading and return a stream of bytes."""
    if "://" in path:
        system, name = remote_storage(path)
        return cast(BinaryIO, system.open(name, "rb"))  # fsspec's annotation is a union.
    return open(path, "rb")


def matching(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """Return the sorted entries of ``folder`` that match ``pattern``.

    Returns [] if ``folder`` does not exist.
    """
    try:
        entries = [entry for entry in folder.iterdir() if fnmatch.fnmatchcase(entry.name, pattern)]
    except FileNotFoundError:
        return []
    return sorted(entries, key=lambda entry: entry.name)


def files_below(folder: str) -> list[str]:
    """Return the sorted paths, relative to ``folder``, of all files below ``folder``."""
    if "://" in folder:
        # This sends one request to the object store; os.walk would send one per folder.
        system, root = remote_storage(folder)
        return sorted(path.removeprefix(f"{root}/") for path in system.find(root))
    walk = os.walk(folder, onerror=_raise)
    found = (os.path.join(parent, name) for parent, _, names in walk for name in names)
    return sorted(os.path.relpath(path, folder) for path in found)


class LiteralPath(type(epath.Path())):
    """An etils path for libraries that call ``glob``; its ``glob`` takes the path literally."""

    def glob(self, pattern: str) -> Iterator[Any]:
        """Yield entries that match the last part of ``pattern``; all earlier parts are literal."""
        *folders, name = pattern.split("/")
        return iter(matching(self.joinpath(*folders), name))


def _raise(error: OSError) -> None:
    raise error
