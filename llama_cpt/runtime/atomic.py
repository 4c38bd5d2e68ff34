"""Atomic writing of files and folders: readers see only complete content."""

from collections.abc import Generator
import contextlib
from typing import Any

from etils import epath

from llama_cpt.runtime.errors import UserError, first_line
from llama_cpt.runtime.storage import check_reachable, storage_error

DRAFT_SUFFIX = ".draft"
"""Suffix of the name under which a file is written before it is renamed."""
INCOMPLETE = ".incomplete"
"""Suffix of the name under which a local folder is written before it is renamed."""


def write_atomic(path: Any, content: bytes | str) -> None:
    """Write ``content`` to ``path`` atomically; text is encoded as UTF-8.

    ``path`` is a ``pathlib`` or ``epath`` path, local or remote. The content is first written to a
    temporary file in the same folder, which then replaces ``path``.
    """
    # The draft is in the same folder, because a rename is atomic only within a file system.
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    draft.replace(path)


def check_new(output: str) -> None:
    """Raise UserError if ``output`` is "", a file, or a folder that is not empty."""
    if not output:
        raise UserError("OUTPUT is empty; it must be the path of a folder.")
    check_reachable(output)
    folder = epath.Path(output).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{output} already exists; name another folder or remove it.")


@contextlib.contextmanager
def atomic_dir(output: str) -> Generator[epath.Path]:
    """Context manager that yields a new folder and publishes it as ``output`` if no error occurs.

    ``output`` is local or ``gs://``. A local folder has a temporary name until the context ends. An
    object store cannot rename folders, so on ``gs://`` the yielded folder is ``output`` itself. The
    caller must therefore write the file that marks the folder as complete after all other files.
    After an error, the folder is removed. Raises UserError if ``output`` is not empty or cannot be
    written.
    """
    check_new(output)
    folder = final = epath.Path(output).expanduser()
    try:
        if "://" not in output:
            folder = final.with_name(f"{final.name}{INCOMPLETE}")
            if folder.exists():
                folder.rmtree()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmtree()
            raise
        if folder != final:
            if final.exists():
                final.rmdir()
            folder.rename(final)
    except OSError as error:
        reason = error.strerror or first_line(error)
        message = f"{output}: cannot be written ({reason}); the incomplete folder was removed."
        raise storage_error(error, message) from error
